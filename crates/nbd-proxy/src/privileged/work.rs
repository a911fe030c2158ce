//! The work itself.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nbd_kernel::{
    Error,
    block::{Disk, QueueTuning},
    fuse::{self, MountOptions},
    loopdev::{self, Loop},
    module,
    nbd::Netlink,
    users::{self, User},
};

use super::{Outcome, Request};

/// Reading the first sector; no device is shorter.
const SECTOR: usize = 512;
/// How far the page cache reads ahead in a FUSE file, in KiB; the kernel's 128 are few for a distant image.
const READ_AHEAD_KB: u32 = 1024;
/// As for the kernel's NBD device.
const LOOP_TUNING: QueueTuning = QueueTuning {
    read_ahead_kb: Some(1024),
    max_sectors_kb: Some(1024),
    io_timeout: None,
};

/// Does a piece of work. `own` are the processes that serve the device, and so are no users of it.
pub(super) fn perform(request: &Request, own: &[u32]) -> Result<Outcome, Error> {
    match request {
        Request::UsersOfDisk { disk } => Ok(names(&users::of_disk(&Disk::new(disk), own))),
        Request::UsersOfFile { path } => Ok(names(&users::of_mounted_file(path, own))),
        Request::LoadNbd => module::load("nbd").map(|()| Outcome::Done),
        Request::PrepareLoop => prepare_loop().map(|()| Outcome::Done),
        Request::FirstRead { disk } => first_read(&Disk::new(disk)).map(|()| Outcome::Done),
        Request::Mount { path, others } => mount(path, *others),
        Request::Unmount { path } => fuse::unmount(path).map(|()| Outcome::Done),
        Request::AttachLoop { path } => {
            attach_loop(path).map(|device| Outcome::Loop(device.index()))
        }
        Request::Disconnect { index } => disconnect(*index).map(|()| Outcome::Done),
        Request::DetachLoop { index } => Loop::new(*index).detach().map(|()| Outcome::Done),
    }
}

fn names(users: &[User]) -> Outcome {
    Outcome::Users(users.iter().map(User::to_string).collect())
}

fn first_read(disk: &Disk) -> Result<(), Error> {
    let path = disk.path();
    File::open(&path)
        .and_then(|mut node| node.read_exact(&mut [0; SECTOR]))
        .map_err(failed("read", &path))
}

fn disconnect(index: u32) -> Result<(), Error> {
    let netlink = Netlink::open()?.ok_or(Error::NoNbdDriver)?;
    netlink.disconnect(index)
}

fn mount(path: &Path, others: bool) -> Result<Outcome, Error> {
    let descriptor = fuse::mount(&MountOptions {
        mount_point: path,
        allow_other: others,
    })?;
    let _ = fuse::set_read_ahead(path, READ_AHEAD_KB); // root's alone; reads are shorter without
    Ok(Outcome::Mounted(descriptor))
}

fn prepare_loop() -> Result<(), Error> {
    let missing = loopdev::available().is_err_and(|error| error.is_absent());
    if missing && rustix::process::geteuid().is_root() {
        let _ = module::load("loop"); // whether it helped shows next
    }
    loopdev::available()
}

/// Has the kernel read partitions from the file: not on the task that answers for it.
fn attach_loop(path: &Path) -> Result<Loop, Error> {
    let file = File::open(path).map_err(failed("open", path))?;
    let device = Loop::attach(&file)?;
    let _ = device.disk().tune(&LOOP_TUNING); // an older kernel lacks a knob: the device is slower, no less right
    match first_read(device.disk()) {
        Ok(()) => Ok(device),
        Err(error) => {
            let _ = device.detach(); // the first error is the one to tell
            Err(error)
        }
    }
}

fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let action = format!("{verb} {}", PathBuf::from(path).display());
    |source| Error::Io { action, source }
}
