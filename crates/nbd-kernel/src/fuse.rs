//! A FUSE file system that is one regular file, mounted upon a regular file.
//!
//! [`mount()`] gives the descriptor, [`FileServer`] speaks the protocol (`include/uapi/linux/fuse.h`) without
//! I/O: it answers everything itself except reads, which it hands out. Dropping the descriptor aborts the
//! connection: whoever still has the file open gets an error at once.

mod mount;
mod protocol;

pub use mount::{MountOptions, is_mounted, mount, unmount};
pub use protocol::{Action, FileServer, MAX_READ, REQUEST_BUFFER, reply_header};

use crate::mounts::{self, Mount};

/// The type that our mounts bear in mountinfo.
pub const MOUNT_TYPE: &str = "fuse.nbd-proxy";

/// Our mounts that this process sees, dead ones included.
pub fn mounts() -> Vec<Mount> {
    let mut mounts = mounts::own();
    mounts.retain(|mount| mount.kind == MOUNT_TYPE);
    mounts
}
