//! The open files that a process was started with.

use std::fs;
use std::io;

/// The first one after standard input, output and error.
const FIRST: libc::c_uint = 3;

/// Has every open file but standard input, output and error closed in each program that this process starts. Rust's own
/// are so from the beginning; those that we were started with (listening sockets of systemd's, what a shell left open)
/// need not be.
pub fn close_on_exec() -> io::Result<()> {
    match mark_all() {
        // Linux before 5.9 has no close_range, and before 5.11 not this flag.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
            mark_each()
        }
        result => result,
    }
}

#[allow(unsafe_code)]
fn mark_all() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: with this flag close_range(2) closes nothing: it sets FD_CLOEXEC on what is open in the range, which
    // changes nothing in this process. It takes no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, flags) };
    check(result == 0)
}

fn mark_each() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_string_lossy().parse().ok();
        if let Some(number) = number.filter(|number| *number >= FIRST.cast_signed()) {
            mark(number)?;
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn mark(descriptor: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETFD takes a number and touches no memory; a descriptor that was closed meanwhile gives EBADF.
    let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    match check(result == 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        result => result,
    }
}

fn check(success: bool) -> io::Result<()> {
    success.then_some(()).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn what_was_inherited_is_marked_either_way() {
        for mark in [mark_all, mark_each] {
            let (inherited, _) = UnixStream::pair().unwrap();
            fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
            mark().unwrap();
            assert_eq!(fcntl_getfd(&inherited).unwrap(), FdFlags::CLOEXEC);
        }
    }
}
