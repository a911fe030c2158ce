//! How much a pipe holds (fcntl(2), `F_SETPIPE_SZ`).

use std::fs;
use std::os::fd::AsFd;

use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use crate::error::{Doing, Result};

/// Raises a pipe's size to `bytes`, or as far towards it as this user may; what it holds afterwards, in bytes.
/// Fails where the descriptor is no pipe. A pipe that holds more already is left alone.
pub fn raise_size(pipe: impl AsFd, bytes: usize) -> Result<usize> {
    let now = fcntl_getpipe_size(&pipe).doing("read the size of a pipe")?;
    let allowed = max_size().unwrap_or(bytes);
    for wanted in [bytes, bytes.min(allowed)] {
        if wanted <= now {
            return Ok(now);
        }
        if let Ok(size) = fcntl_setpipe_size(&pipe, wanted) {
            return Ok(size);
        }
    }
    Ok(now)
}

/// The largest pipe that a user without CAP_SYS_RESOURCE may have, in bytes.
pub fn max_size() -> Option<usize> {
    let text = fs::read_to_string("/proc/sys/fs/pipe-max-size").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_grows_and_never_shrinks() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(raise_size(&reader, 1 << 20).unwrap() >= 1 << 16);
        let large = fcntl_getpipe_size(&reader).unwrap();
        assert_eq!(raise_size(&reader, 4096).unwrap(), large);
    }

    #[test]
    fn what_is_no_pipe_is_refused() {
        let file = fs::File::open("/dev/null").unwrap();
        assert!(raise_size(&file, 1 << 20).is_err());
    }
}
