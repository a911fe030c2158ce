//! Open files: those that a process was started with, and those that one process sends another.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

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

/// Sends as many of `bytes` as go at once over a Unix socket, and a descriptor with the first of them (`unix(7)`,
/// SCM_RIGHTS). Gives how many that were.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let slices = [IoSlice::new(bytes)];
    let sent =
        rustix::io::retry_on_intr(|| sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL))?;
    Ok(sent)
}

/// What one read of a socket brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; none at the end.
    pub length: usize,
    /// What came with them. No program that is started from now on inherits it.
    pub descriptor: Option<OwnedFd>,
}

/// Reads a Unix socket once, and takes a descriptor that comes with it; further ones are closed.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Received {
        length: message.bytes,
        descriptor,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn a_descriptor_comes_with_its_bytes_and_no_program_inherits_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sent, _other) = UnixStream::pair().unwrap();
        assert_eq!(send(&ours, b"take it", Some(sent.as_fd())).unwrap(), 7);
        let mut bytes = [0; 16];
        let received = receive(&theirs, &mut bytes).unwrap();
        assert_eq!(&bytes[..received.length], b"take it");
        let descriptor = received.descriptor.unwrap();
        assert_eq!(fcntl_getfd(&descriptor).unwrap(), FdFlags::CLOEXEC);
        assert_eq!(send(&ours, b"x", None).unwrap(), 1);
        assert!(receive(&theirs, &mut bytes).unwrap().descriptor.is_none());
        drop(ours);
        assert_eq!(receive(&theirs, &mut bytes).unwrap().length, 0);
    }

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
