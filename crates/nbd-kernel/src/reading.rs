//! Reads into new memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

#[cfg(not(target_env = "gnu"))]
use libc::preadv2;
#[cfg(target_env = "gnu")]
use libc::preadv64v2 as preadv2;

/// Up to `length` bytes of a file from `offset` on, in memory that was not cleared before: that alone would cost a
/// fifteenth of what sharing a file in memory does. Fewer: the file ends there, or the kernel has no more of it.
///
/// Unless it may `wait`, what is not in memory is an error, `EAGAIN`; so is every read of a file system that can't tell
/// (`EOPNOTSUPP`; `RWF_NOWAIT` in preadv2(2)).
#[allow(unsafe_code)]
pub fn read_at(file: impl AsFd, offset: u64, length: usize, wait: bool) -> io::Result<Vec<u8>> {
    let mut data = Vec::<u8>::with_capacity(length);
    let room = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: length,
    };
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let flags = if wait { 0 } else { libc::RWF_NOWAIT };
    // SAFETY: the one vector is the memory of `data`, which has room for `length` bytes and outlives the call.
    let count = unsafe { preadv2(file.as_fd().as_raw_fd(), &raw const room, 1, offset, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled `count` bytes of that memory, no more than there is room for.
    unsafe { data.set_len(count) };
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::testing::Tree;

    fn file() -> (Tree, File) {
        let folder = Tree::new();
        folder.file("file", "0123456789");
        let file = File::open(folder.path().join("file")).unwrap();
        (folder, file)
    }

    #[test]
    fn what_is_there_is_read_and_no_more() {
        let (_folder, file) = file();
        assert_eq!(read_at(&file, 2, 3, true).unwrap(), b"234");
        assert_eq!(read_at(&file, 8, 100, true).unwrap(), b"89");
        assert_eq!(read_at(&file, 10, 1, true).unwrap(), b"");
        assert_eq!(read_at(&file, 0, 0, true).unwrap(), b"");
    }

    #[test]
    fn who_does_not_wait_gets_the_same_bytes_or_an_error() {
        let (_folder, file) = file();
        if let Ok(data) = read_at(&file, 2, 3, false) {
            assert!(b"234".starts_with(&data));
        }
    }

    #[test]
    fn what_can_not_be_read_is_an_error() {
        let (folder, file) = file();
        read_at(&file, u64::MAX, 1, true).unwrap_err();
        read_at(File::open(folder.path()).unwrap(), 0, 1, true).unwrap_err();
    }
}
