//! Mounting: directly where we may, by `fusermount3` where we may not.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, UnmountFlags};

use super::MOUNT_TYPE;
use crate::error::{Doing, Result};
use crate::{descriptors, mounts};

const SUBTYPE: &str = "nbd-proxy";
/// The least number of a connection's descriptor. A killed process releases its files from the highest number down
/// (`close_files` in `fs/file.c` puts each on the list that `task_work_run` takes from its end), and the release of a
/// loop device that we were attaching waits for reads that only the end of its FUSE connection ends.
const HIGH: i32 = 896;

/// How to mount.
#[derive(Debug, Clone, Copy)]
pub struct MountOptions<'a> {
    /// An existing regular file without symbolic links in its path; for other users than root it must be their
    /// own and writable.
    pub mount_point: &'a Path,
    /// Whether other users may read the file, as its permission bits say. Other users than root need
    /// `user_allow_other` in `/etc/fuse.conf` for it.
    pub allow_other: bool,
}

/// Mounts a read-only file system whose root is a regular file. The descriptor is non-blocking; its first
/// request is INIT.
pub fn mount(options: &MountOptions<'_>) -> Result<OwnedFd> {
    let device = match mount_directly(options) {
        Err(e) if e.is_permission() => mount_by_helper(options),
        result => result,
    }?;
    // Without room up there everything works but being killed in the middle of an attach.
    Ok(rustix::io::fcntl_dupfd_cloexec(&device, HIGH).unwrap_or(device))
}

/// Unmounts, also while somebody has the file open, and whether the server lives or not. Nothing to do is no
/// error.
pub fn unmount(mount_point: &Path) -> Result<()> {
    match rustix::mount::unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::PERM) if is_mounted(mount_point) => unmount_by_helper(mount_point),
        Err(Errno::PERM) => Ok(()),
        Err(e) => Err(e).doing_to("unmount", mount_point),
    }
}

/// Whether one of our file systems, dead or alive, is mounted there.
pub fn is_mounted(mount_point: &Path) -> bool {
    mounts::own()
        .iter()
        .any(|mount| mount.mount_point == mount_point && mount.kind == MOUNT_TYPE)
}

/// Fails where the kernel has no FUSE, or this process may not use it.
pub fn available() -> Result<()> {
    open_device().map(drop)
}

fn open_device() -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .doing_to("open", "/dev/fuse")
}

fn mount_directly(options: &MountOptions<'_>) -> Result<OwnedFd> {
    let device = open_device()?;
    rustix::io::ioctl_fionbio(&device, true).doing_to("use", "/dev/fuse")?;
    let mut data = format!(
        "fd={},rootmode=100000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).doing("mount a FUSE file")?;
    let target = pin(options.mount_point)?;
    rustix::mount::mount(
        SUBTYPE,
        format!("/proc/self/fd/{}", target.as_raw_fd()),
        MOUNT_TYPE,
        MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
        data.as_c_str(),
    )
    .doing_to("mount a FUSE file on", options.mount_point)?;
    Ok(device.into())
}

/// The file to mount upon, held so that nobody can put another in its place. Whoever may write to its folder does not
/// get to hide a file of somebody else: it is regular, empty, and no symbolic link leads to it.
fn pin(mount_point: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = match openat2(
        CWD,
        mount_point,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    ) {
        // Linux before 5.6 has no openat2.
        Err(Errno::NOSYS) => open(mount_point, flags, Mode::empty()),
        result => result,
    }
    .doing_to("open the mount point", mount_point)?;
    let facts = fstat(&pinned).doing_to("look at", mount_point)?;
    if FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile && facts.st_size == 0 {
        return Ok(pinned);
    }
    let cause = io::Error::new(io::ErrorKind::InvalidInput, "it is not an empty file");
    Err(cause).doing_to("mount upon", mount_point)
}

/// `fusermount3` mounts with root's rights and sends the descriptor over the socket that it is given.
fn mount_by_helper(options: &MountOptions<'_>) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().doing("create a socket pair")?;
    fcntl_setfd(&theirs, FdFlags::empty()).doing("pass a socket on")?;
    let mut list =
        format!("ro,nosuid,nodev,default_permissions,fsname={SUBTYPE},subtype={SUBTYPE}");
    if options.allow_other {
        list.push_str(",allow_other");
    }
    let child = Command::new("fusermount3")
        .args(["-o", &list, "--"])
        .arg(options.mount_point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing("run fusermount3 (Debian's package fuse3)")?;
    drop(theirs);
    let complaint = finish(child)?;
    let Some(device) = sent_to(&ours).doing("receive the mount from fusermount3")? else {
        return Err(io::Error::other(complaint)).doing("mount by fusermount3");
    };
    fcntl_setfd(&device, FdFlags::CLOEXEC).doing_to("use", "/dev/fuse")?;
    rustix::io::ioctl_fionbio(&device, true).doing_to("use", "/dev/fuse")?;
    Ok(device)
}

/// What the helper, which has ended, has sent: one message with a descriptor, or none. That is not waited for, since a
/// program that was started meanwhile may have inherited the other end.
fn sent_to(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    socket.set_nonblocking(true)?;
    match descriptors::receive(socket, &mut [0]) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => Ok(result?.descriptor),
    }
}

fn unmount_by_helper(mount_point: &Path) -> Result<()> {
    let child = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mount_point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing("run fusermount3 (Debian's package fuse3)")?;
    let complaint = finish(child)?;
    if is_mounted(mount_point) {
        return Err(io::Error::other(complaint)).doing_to("unmount", mount_point);
    }
    Ok(())
}

/// Waits for the helper and returns what it wrote to standard error.
fn finish(child: Child) -> Result<String> {
    let output = child.wait_with_output().doing("wait for fusermount3")?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_helper_that_sent_nothing_is_not_waited_for_whoever_has_its_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(sent_to(&ours).unwrap().is_none());
        drop(theirs);
        assert!(sent_to(&ours).unwrap().is_none());
    }

    #[test]
    fn a_helper_that_has_ended_has_left_its_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (device, _) = UnixStream::pair().unwrap();
        descriptors::send(&theirs, &[0], Some(device.as_fd())).unwrap();
        drop(theirs);
        assert!(sent_to(&ours).unwrap().is_some());
    }
}
