//! A file over FUSE: a mount of one file upon a file.

mod server;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd_kernel::fuse::{self as kernel_fuse, FileServer};
use tokio::task::JoinHandle;

use self::server::Server;
use super::{AttachRequest, Detached, DeviceError, DeviceSpec, blocking, loopdev, users};
use crate::{paths, privileged};

/// Anybody may read the file, where the mount lets others in at all.
const PERMISSIONS: u32 = 0o444;
/// Unmounting takes this long at most.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(4);

/// An attached file. Detached when dropped.
#[derive(Debug)]
pub(crate) struct FuseDevice {
    path: String,
    file: FuseFile,
}

impl FuseDevice {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) async fn users(&self) -> Vec<String> {
        users::of_mounted_file(self.file.path()).await
    }

    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        if !force {
            users::ensure_none(&self.path, || self.users()).await?;
        }
        self.file.close().await?;
        Ok(Detached::Free)
    }

    /// Whoever still has the file open holds a dead one, and nobody up.
    pub(crate) async fn drained(&self) {}
}

/// Attaches a file at `path`, or at `R/NAME.img`. It is as long as every other device of the image: padded to 512 bytes.
pub(crate) async fn attach(
    path: Option<&Path>,
    request: AttachRequest,
) -> Result<FuseDevice, DeviceError> {
    let path = file_path(path, &request.name, &request.runtime_dir)?;
    let place = Place {
        path,
        allow_other: rustix::process::geteuid().is_root(),
        size: request.geometry.size,
    };
    let file = FuseFile::mount(place, &request).await?;
    let path = file.path().to_path_buf();
    let look = move || File::open(&path).and_then(|mut file| file.read_exact(&mut [0]));
    blocking::run(look)
        .await
        .and_then(|result| result)
        .map_err(DeviceError::io("read the FUSE file"))?;
    Ok(FuseDevice {
        path: file.path().to_string_lossy().into_owned(),
        file,
    })
}

/// As the kernel names it: absolute, without symbolic links.
pub(crate) fn file_path(
    given: Option<&Path>,
    name: &str,
    runtime_dir: &Path,
) -> Result<PathBuf, DeviceError> {
    let default = || paths::runtime_file(runtime_dir, name, "img");
    let path = given.map_or_else(default, Path::to_path_buf);
    let file_name = path
        .file_name()
        .ok_or_else(|| DeviceError::Refused(format!("fuse:{} names no file", path.display())))?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let parent = parent.canonicalize().map_err(DeviceError::io(format!(
        "find the folder {}",
        parent.display()
    )))?;
    Ok(parent.join(file_name))
}

/// Where a file is to appear.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// Whether other users may read it.
    pub(super) allow_other: bool,
    /// In bytes.
    pub(super) size: u64,
}

/// A mounted file and the task that answers for it. Unmounted when dropped.
#[derive(Debug)]
pub(super) struct FuseFile {
    path: PathBuf,
    leaving: Arc<AtomicBool>,
    serving: Mutex<Option<JoinHandle<()>>>,
    mounted: Mutex<Option<Mounted>>,
}

impl FuseFile {
    /// Mounts. Requests come from now on; whoever opens the file waits for them to be answered.
    pub(super) async fn mount(place: Place, request: &AttachRequest) -> Result<Self, DeviceError> {
        let Place { path, size, .. } = place.clone();
        let mount = move || Mounted::new(&place);
        let (mounted, descriptor) = blocking::run(mount)
            .await
            .map_err(DeviceError::io("start a thread"))??;
        let server = Server::new(
            descriptor,
            FileServer::new(size, PERMISSIONS),
            request.requests.clone(),
        )
        .map_err(DeviceError::io("watch /dev/fuse"))?;
        let leaving = Arc::new(AtomicBool::new(false));
        let (expected, events) = (leaving.clone(), request.events.clone());
        let serving = tokio::spawn(async move {
            let end = server.run().await;
            if !expected.load(Ordering::Acquire) {
                let _ = events.send(end);
            }
        });
        Ok(FuseFile {
            path,
            leaving,
            serving: Mutex::new(Some(serving)),
            mounted: Mutex::new(Some(mounted)),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Closes `/dev/fuse`: what is outstanding fails, and so does everything asked from now on.
    pub(super) async fn stop_answering(&self) {
        self.leaving.store(true, Ordering::Release);
        if let Some(serving) = take(&self.serving) {
            serving.abort();
            let _ = serving.await; // the descriptor goes with the task
        }
    }

    /// Stops answering and unmounts.
    pub(super) async fn close(&self) -> Result<(), DeviceError> {
        self.stop_answering().await;
        let Some(mounted) = take(&self.mounted) else {
            return Ok(());
        };
        let action = format!("unmount {}", self.path.display());
        blocking::run_within(UNMOUNT_LIMIT, move || mounted.unmount())
            .await
            .map_err(DeviceError::io(action))
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Release);
        if let Some(serving) = take(&self.serving) {
            serving.abort();
        }
        if let Some(mounted) = take(&self.mounted) {
            blocking::begin(move || drop(mounted));
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The mount itself. Unmounted when dropped.
#[derive(Debug)]
struct Mounted {
    path: PathBuf,
    /// We made the file beneath, and remove it.
    created: bool,
    live: bool,
}

impl Mounted {
    fn new(place: &Place) -> Result<(Self, OwnedFd), DeviceError> {
        let path = place.path.clone();
        if kernel_fuse::is_mounted(&path) {
            let users = vec!["a FUSE file is mounted there already".into()];
            return Err(DeviceError::InUse {
                device: path.display().to_string(),
                users,
            });
        }
        let created = make_mount_point(&path)?;
        let mut mounted = Mounted {
            path,
            created,
            live: false,
        };
        let descriptor = privileged::mount(place.path.clone(), place.allow_other)
            .map_err(|error| cannot_mount(&place.path, error))?;
        mounted.live = true;
        Ok((mounted, descriptor))
    }

    fn unmount(mut self) -> io::Result<()> {
        self.live = false;
        privileged::unmount(self.path.clone()).map_err(io::Error::other)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live {
            let _ = privileged::unmount(self.path.clone());
        }
        if self.created {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes an empty file to mount upon; false where one was there. A file with content is not hidden.
fn make_mount_point(path: &Path) -> Result<bool, DeviceError> {
    match File::create_new(path) {
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(DeviceError::io(format!("create {}", path.display()))(error)),
    }
    let facts = fs::symlink_metadata(path)
        .map_err(DeviceError::io(format!("look at {}", path.display())))?;
    if facts.is_file() && facts.len() == 0 {
        return Ok(false);
    }
    Err(DeviceError::Refused(format!(
        "{} exists and is not an empty file; remove it or choose another",
        path.display()
    )))
}

fn cannot_mount(path: &Path, error: nbd_kernel::Error) -> DeviceError {
    let device = format!("fuse:{}", path.display());
    let cause = error.to_string();
    match error {
        error if error.is_permission() || error.is_absent() => DeviceError::Unavailable {
            device,
            cause,
            remedy: MOUNT_REMEDY.into(),
        },
        nbd_kernel::Error::Io { action, source } => DeviceError::Io { action, source },
        _ => DeviceError::Refused(cause),
    }
}

/// What helps where no FUSE file can be mounted.
pub(crate) const MOUNT_REMEDY: &str = "load the module (modprobe fuse), and install fusermount3 (Debian's package fuse3) or run as root";

/// Frees mounts and loop devices left of configuration `name`.
pub(crate) async fn recover(
    spec: &DeviceSpec,
    name: &str,
    runtime_dir: &Path,
) -> Result<Vec<String>, DeviceError> {
    let mut freed = loopdev::recover(name, runtime_dir).await?;
    let given = match spec {
        DeviceSpec::Fuse { path } => path.as_deref(),
        _ => None,
    };
    // Where there is no such folder nothing can be left; attaching will say that it is missing.
    let Ok(path) = file_path(given, name, runtime_dir) else {
        return Ok(freed);
    };
    if unmount_dead(path.clone()).await? {
        freed.push(format!("{} was still mounted", path.display()));
    }
    Ok(freed)
}

/// Unmounts a file of ours that nobody answers for any more; whether there was one.
pub(super) async fn unmount_dead(path: PathBuf) -> Result<bool, DeviceError> {
    let action = format!("unmount {}", path.display());
    let look = move || {
        let dead = kernel_fuse::is_mounted(&path)
            && File::open(&path).is_err_and(|error| is_not_connected(&error));
        if dead {
            privileged::unmount(path.clone()).map_err(io::Error::other)?;
            remove_empty(&path);
        }
        Ok(dead)
    };
    blocking::run_within(UNMOUNT_LIMIT, look)
        .await
        .map_err(DeviceError::io(action))
}

fn is_not_connected(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}

/// Removes what was mounted upon; a file with content is not ours.
fn remove_empty(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() == 0) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests;
