//! A FUSE file system that is one regular file, mounted upon a regular file.
//!
//! [`mount()`] gives the descriptor, [`FileServer`] speaks the protocol (`include/uapi/linux/fuse.h`) without
//! I/O: it answers everything itself except reads, which it hands out. Dropping the descriptor aborts the
//! connection: whoever still has the file open gets an error at once.

mod mount;
mod protocol;

pub use mount::{MountOptions, available, is_mounted, mount, unmount};
pub use protocol::{Action, FileServer, MAX_READ, REQUEST_BUFFER, reply_header};

use std::fs;
use std::io;
use std::path::Path;

use crate::mounts::{self, Mount};

/// The type that our mounts bear in mountinfo.
pub const MOUNT_TYPE: &str = "fuse.nbd-proxy";

/// Our mounts that this process sees, dead ones included.
pub fn mounts() -> Vec<Mount> {
    let mut mounts = mounts::own();
    mounts.retain(|mount| mount.kind == MOUNT_TYPE);
    mounts
}

/// Sets how far the page cache reads ahead in the file mounted there, in KiB. The kernel's own value, 128 KiB, is a
/// ceiling to what the file system may ask for itself. Needs root.
pub fn set_read_ahead(mount_point: &Path, kb: u32) -> io::Result<()> {
    let mounts = mounts();
    let mount = mounts.iter().find(|mount| mount.mount_point == mount_point);
    let (major, minor) = mount.ok_or(io::ErrorKind::NotFound)?.device;
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(knob, kb.to_string())
}
