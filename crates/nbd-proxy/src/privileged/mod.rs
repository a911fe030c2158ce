//! What takes more privileges than the process that faces the network keeps: who uses a device, mounts, loop devices,
//! kernel modules. Where a helper was started it does these, and runs the hooks; without one (in the stdin/stdout form,
//! in `check`, in the helper itself) they are done here.

#[cfg(feature = "serve")]
mod client;
#[cfg(feature = "serve")]
pub(crate) mod helper;
#[cfg(feature = "serve")]
mod protocol;
#[cfg(feature = "serve")]
mod rules;
#[cfg(feature = "serve")]
mod turn;
mod work;

use std::{os::fd::OwnedFd, path::PathBuf};

use nbd_kernel::{Error, block::Disk};
use serde::{Deserialize, Serialize};

#[cfg(feature = "serve")]
pub(crate) use client::{Helper, helper, watch};

/// A piece of work. Each may wait for answers to requests of a device that we serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    /// Who uses `/dev/DISK` or a partition of it.
    UsersOfDisk { disk: String },
    /// Who uses the FUSE file at that path.
    UsersOfFile { path: PathBuf },
    /// Load the kernel's NBD driver.
    LoadNbd,
    /// Load the driver of loop devices where it is missing, and see whether it works.
    PrepareLoop,
    /// Read the first sector of `/dev/DISK`, which has the kernel look for partitions.
    FirstRead { disk: String },
    /// Mount a FUSE file.
    Mount { path: PathBuf, others: bool },
    /// Unmount it.
    Unmount { path: PathBuf },
    /// Attach a loop device to the FUSE file at that path, and read its first sector.
    AttachLoop { path: PathBuf },
    /// Detach `/dev/loopINDEX`.
    DetachLoop { index: u32 },
    /// Disconnect `/dev/nbdINDEX`, which a process that was killed left attached.
    Disconnect { index: u32 },
}

/// What came of a piece of work.
#[derive(Debug)]
enum Outcome {
    /// It is done.
    Done,
    /// Each a few words such as `mounted on /mnt`.
    Users(Vec<String>),
    /// The `/dev/fuse` of a mount.
    Mounted(OwnedFd),
    /// N of `/dev/loopN`.
    Loop(u32),
}

fn perform(request: &Request) -> Result<Outcome, Error> {
    #[cfg(feature = "serve")]
    if let Some(helper) = helper() {
        return helper.perform(request);
    }
    work::perform(request, &[std::process::id()])
}

/// Who uses a disk or a partition of it, each in a few words. Where that can't be found out, this counts as a user: a
/// device that may be in use is not taken away.
pub(crate) fn users_of_disk(disk: &Disk) -> Vec<String> {
    users(&Request::UsersOfDisk {
        disk: disk.name().into(),
    })
}

/// The same of the FUSE file mounted at `path`.
pub(crate) fn users_of_file(path: PathBuf) -> Vec<String> {
    users(&Request::UsersOfFile { path })
}

fn users(request: &Request) -> Vec<String> {
    match perform(request) {
        Ok(Outcome::Users(users)) => users,
        Ok(_) => vec!["unknown, since the helper answered something else".into()],
        Err(error) => vec![format!("unknown: {error}")],
    }
}

/// Loads the kernel's NBD driver; loaded already is no error.
pub(crate) fn load_nbd() -> Result<(), Error> {
    done(&Request::LoadNbd)
}

/// Loads the driver of loop devices where it is missing and we may. Fails where there are none, or not for us.
pub(crate) fn prepare_loop() -> Result<(), Error> {
    done(&Request::PrepareLoop)
}

/// Reads the first sector of a disk: afterwards the kernel knows its partitions.
pub(crate) fn first_read(disk: &Disk) -> Result<(), Error> {
    done(&Request::FirstRead {
        disk: disk.name().into(),
    })
}

/// Mounts a FUSE file upon the empty file at `path`, as [`nbd_kernel::fuse::mount`] does. `others`: other users may read
/// it.
pub(crate) fn mount(path: PathBuf, others: bool) -> Result<OwnedFd, Error> {
    match perform(&Request::Mount { path, others })? {
        Outcome::Mounted(descriptor) => Ok(descriptor),
        _ => Err(Error::Malformed("no descriptor of a mount")),
    }
}

/// Unmounts a FUSE file.
pub(crate) fn unmount(path: PathBuf) -> Result<(), Error> {
    done(&Request::Unmount { path })
}

/// Attaches a loop device to the FUSE file at `path`: its number.
pub(crate) fn attach_loop(path: PathBuf) -> Result<u32, Error> {
    match perform(&Request::AttachLoop { path })? {
        Outcome::Loop(index) => Ok(index),
        _ => Err(Error::Malformed("no number of a loop device")),
    }
}

/// Detaches `/dev/loopINDEX`.
pub(crate) fn detach_loop(index: u32) -> Result<(), Error> {
    done(&Request::DetachLoop { index })
}

/// Disconnects `/dev/nbdINDEX`, which a process that was killed left attached.
pub(crate) fn disconnect(index: u32) -> Result<(), Error> {
    done(&Request::Disconnect { index })
}

fn done(request: &Request) -> Result<(), Error> {
    perform(request).map(drop)
}
