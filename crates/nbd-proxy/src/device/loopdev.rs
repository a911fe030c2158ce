//! A loop device over a FUSE file: for kernels without NBD.
//!
//! The order of going is one: `/dev/fuse` is closed, so that nothing can wait for us any more, then the loop device
//! gives its file back, then the file is unmounted.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd_kernel::loopdev::Loop;
use tokio::time::sleep;

use super::{
    AttachRequest, Detached, DeviceError, blocking,
    fuse::{FuseFile, Place, unmount_dead},
    users::{self, poll_until},
};
use crate::{paths, privileged};

/// A detach takes this long at most, and then a moment to see whether the device is free.
const DETACH_LIMIT: Duration = Duration::from_secs(3);
const FREE_LIMIT: Duration = Duration::from_millis(200);
/// The same for a leftover.
const RECOVER_LIMIT: Duration = Duration::from_secs(2);
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// An attached `/dev/loopN`. Detached when dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: String,
    // In this order they are dropped.
    file: FuseFile,
    attached: Attached,
}

impl LoopDevice {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) async fn users(&self) -> Vec<String> {
        users::of_disk(self.attached.device.disk()).await
    }

    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        if !force {
            users::ensure_none(&self.path, || self.users()).await?;
        }
        self.file.stop_answering().await;
        self.attached.detach().await?;
        self.file.close().await?;
        if let Some(directory) = self.file.path().parent() {
            let _ = fs::remove_dir(directory); // empty, unless somebody put something there
        }
        self.attached.note_what_is_left();
        if poll_until(FREE_LIMIT, || self.attached.is_free()).await {
            return Ok(Detached::Free);
        }
        Ok(Detached::Draining {
            users: self.users().await,
        })
    }

    pub(crate) async fn drained(&self) {
        while !self.attached.is_free() {
            sleep(DRAIN_POLL).await;
        }
    }
}

/// Attaches `/dev/loopN`.
pub(crate) async fn attach(request: AttachRequest) -> Result<LoopDevice, DeviceError> {
    prepare_loop().await?;
    let directory = private_directory(&request.name, &request.runtime_dir)?;
    let place = Place {
        path: directory.join(FILE_NAME),
        allow_other: false,
        size: request.geometry.size,
    };
    let file = FuseFile::mount(place, &request).await?;
    let path = file.path().to_path_buf();
    let attached = blocking::run(move || Attached::new(&path))
        .await
        .map_err(DeviceError::io("start a thread"))??;
    let path = attached.device.disk().path().to_string_lossy().into_owned();
    Ok(LoopDevice {
        path,
        file,
        attached,
    })
}

/// Whether there are loop devices; their driver may have to be loaded.
async fn prepare_loop() -> Result<(), DeviceError> {
    let prepared = blocking::run(privileged::prepare_loop)
        .await
        .map_err(DeviceError::io("start a thread"))?;
    prepared.map_err(|error| DeviceError::Unavailable {
        device: "loop:".into(),
        cause: error.to_string(),
        remedy: LOOP_REMEDY.into(),
    })
}

/// What helps where there are no loop devices.
pub(crate) const LOOP_REMEDY: &str = "load the driver (modprobe loop) and run as root";

/// The file beneath the loop device; `losetup` shows this name.
const FILE_NAME: &str = "image";

/// Of the configuration's: nobody else looks into it.
fn private_directory(name: &str, runtime_dir: &Path) -> Result<PathBuf, DeviceError> {
    let path = directory_path(name, runtime_dir)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(DeviceError::io(format!("create {}", path.display())))?;
    Ok(path)
}

/// The file beneath the loop device of configuration `name`.
#[cfg(feature = "serve")]
pub(crate) fn file_path(name: &str, runtime_dir: &Path) -> Result<PathBuf, DeviceError> {
    Ok(directory_path(name, runtime_dir)?.join(FILE_NAME))
}

fn directory_path(name: &str, runtime_dir: &Path) -> Result<PathBuf, DeviceError> {
    let runtime_dir = runtime_dir
        .canonicalize()
        .map_err(DeviceError::io("find the runtime directory"))?;
    Ok(paths::runtime_file(&runtime_dir, name, "loop"))
}

/// A loop device with our file. Detached when dropped.
#[derive(Debug)]
struct Attached {
    device: Loop,
    /// What the kernel calls its file; as long as it does, nobody else has attached the device.
    file: Mutex<Option<PathBuf>>,
    detached: AtomicBool,
}

impl Attached {
    /// Has the kernel read partitions from the file: not on the task that answers for it.
    fn new(path: &Path) -> Result<Self, DeviceError> {
        let index = privileged::attach_loop(path.to_path_buf()).map_err(cannot_attach)?;
        let device = Loop::new(index);
        let file = Mutex::new(device.backing_file());
        Ok(Attached {
            device,
            file,
            detached: AtomicBool::new(false),
        })
    }

    async fn detach(&self) -> Result<(), DeviceError> {
        self.detached.store(true, Ordering::Release);
        detach(self.device.clone()).await
    }

    /// After the unmount the kernel has another name for the file, as long as somebody holds the device.
    fn note_what_is_left(&self) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = self.device.backing_file();
    }

    fn is_free(&self) -> bool {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.is_none() || self.device.backing_file() != *file
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.detached.load(Ordering::Acquire) {
            let device = self.device.clone();
            blocking::begin(move || {
                let _ = privileged::detach_loop(device.index()); // a leftover that a successor frees
            });
        }
    }
}

fn cannot_attach(error: nbd_kernel::Error) -> DeviceError {
    let cause = error.to_string();
    match error {
        error if error.is_permission() || error.is_absent() => DeviceError::Unavailable {
            device: "loop:".into(),
            cause,
            remedy: LOOP_REMEDY.into(),
        },
        nbd_kernel::Error::Io { action, source } => DeviceError::Io { action, source },
        _ => DeviceError::Refused(cause),
    }
}

async fn detach(device: Loop) -> Result<(), DeviceError> {
    let action = format!("detach {}", device.disk().path().display());
    let detach = move || privileged::detach_loop(device.index()).map_err(io::Error::other);
    blocking::run_within(DETACH_LIMIT, detach)
        .await
        .map_err(DeviceError::io(action))
}

/// Frees the loop devices and the mount left of configuration `name`.
pub(super) async fn recover(name: &str, runtime_dir: &Path) -> Result<Vec<String>, DeviceError> {
    let directory = directory_path(name, runtime_dir)?;
    let mut freed = Vec::new();
    for device in Loop::backed_by(|file| file.starts_with(&directory)) {
        let path = device.disk().path().display().to_string();
        let file = device.backing_file();
        detach(device.clone()).await?;
        if !poll_until(RECOVER_LIMIT, || device.backing_file() != file).await {
            return Err(DeviceError::InUse {
                device: path,
                users: users::of_disk(device.disk()).await,
            });
        }
        freed.push(format!("{path} was still attached"));
    }
    if unmount_dead(directory.join(FILE_NAME)).await? {
        freed.push(format!(
            "{} was still mounted",
            directory.join(FILE_NAME).display()
        ));
    }
    let _ = fs::remove_dir(&directory); // absent, as a rule
    Ok(freed)
}

#[cfg(test)]
mod tests;
