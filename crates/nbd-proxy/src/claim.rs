//! Exclusive use of a configuration: its lock, and what a killed predecessor left.

#[cfg(feature = "serve")]
mod orphans;
#[cfg(feature = "serve")]
mod places;

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{fs::FlockOperation, io::Errno};
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    config::Configuration,
    device::{self, DeviceError},
    hook::{Action, Hook, Subject},
    keep, paths, record, report,
};

#[cfg(feature = "serve")]
pub(crate) use orphans::clean_up_orphans;
#[cfg(feature = "serve")]
pub(crate) use places::clean_up_elsewhere;

/// How long a predecessor that is about to end is waited for: a page that is reloaded connects anew before its old
/// proxy is gone.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(20);

/// The mode of our files: their owner's alone.
const PRIVATE: u32 = 0o600;

/// The right of this process to attach one configuration. Released when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Its lock is what the claim is; the kernel releases it with the process, however that ends.
    _lock: File,
    record: PathBuf,
}

/// Why a configuration cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// Another process has it.
    #[error(
        "configuration {name:?} is in use by another nbd-proxy, process {process}; end that first"
    )]
    Busy {
        /// Of the configuration.
        name: String,
        /// Its number, as far as known.
        process: String,
    },
    /// A lock or state file cannot be used.
    #[error("can't use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a predecessor left cannot be freed.
    #[error("a device left by an earlier nbd-proxy can't be freed: {0}")]
    Leftover(DeviceError),
    /// What is at the device's place was never ours.
    #[error(transparent)]
    Taken(DeviceError),
}

impl From<DeviceError> for ClaimError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Refused(_) => Self::Taken(error),
            _ => Self::Leftover(error),
        }
    }
}

impl Claim {
    /// Takes the configuration for this process, and cleans up after a predecessor.
    #[cfg(feature = "serve")]
    pub(crate) async fn acquire(
        configuration: &Configuration,
        runtime_dir: &Path,
    ) -> Result<Self, ClaimError> {
        let claim = Self::lock(configuration, runtime_dir).await?;
        claim.clean_up(configuration, runtime_dir).await?;
        Ok(claim)
    }

    /// Takes the configuration for this process.
    pub(crate) async fn lock(
        configuration: &Configuration,
        runtime_dir: &Path,
    ) -> Result<Self, ClaimError> {
        let name = &configuration.name;
        let lock = lock(name, &paths::runtime_file(runtime_dir, name, "lock")).await?;
        #[cfg(feature = "serve")]
        places::note(configuration, runtime_dir)?;
        Ok(Self {
            _lock: lock,
            record: paths::runtime_file(runtime_dir, name, "state"),
        })
    }

    /// Cleans up after a predecessor that was killed: runs `stop` where it had begun `start`, and frees its device. A
    /// `stop` that reads the dead device gets an error: it must not wait until the predecessor's hold is over.
    pub(crate) async fn clean_up(
        &self,
        configuration: &Configuration,
        runtime_dir: &Path,
    ) -> Result<(), ClaimError> {
        let (device, name) = (&configuration.device, &configuration.name);
        // First of all: nobody is to go on with what is half gone.
        let was_noted = record::remove(runtime_dir, name).map_err(file_error(
            &paths::runtime_file(runtime_dir, name, "session"),
        ))?;
        device::cut_off(device, name, was_noted).await?;
        self.stop_for_predecessor(configuration).await?;
        remove_copies(configuration).await;
        let recovered = device::recover(device, name, runtime_dir, was_noted).await;
        for freed in recovered? {
            report::warning(format_args!("left by an earlier nbd-proxy: {freed}"));
        }
        Ok(())
    }

    /// Notes that `start` is about to run, so that a successor will run `stop` if we can't.
    pub(crate) fn note_start(&self, subject: &Subject) -> Result<(), ClaimError> {
        let part = self.record.with_extension("state-part");
        let text = serde_json::to_vec(subject).map_err(io::Error::from);
        text.and_then(|text| write_private(&part, &text))
            .and_then(|()| fs::rename(&part, &self.record))
            .map_err(file_error(&self.record))
    }

    /// Whether `start` was noted, and `stop` was not.
    #[cfg(feature = "serve")]
    pub(crate) fn owes_stop(&self) -> bool {
        self.record.exists()
    }

    /// Notes that `stop` has run.
    pub(crate) fn note_stop(&self) -> Result<(), ClaimError> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error(&self.record)(error))
            }
            _ => Ok(()),
        }
    }

    async fn stop_for_predecessor(&self, configuration: &Configuration) -> Result<(), ClaimError> {
        let Some(subject) = self.read_record()? else {
            return Ok(());
        };
        let hook = Hook::of(configuration);
        report::warning(format_args!(
            "an earlier nbd-proxy ended without calling {} stop: calling it now",
            hook.path.display()
        ));
        if hook.exists() {
            let (_never, abandon) = oneshot::channel();
            if let Err(error) = hook.run(Action::Stop, &subject, "recovered", abandon).await {
                report::warning(error);
            }
        }
        self.note_stop()
    }

    fn read_record(&self) -> Result<Option<Subject>, ClaimError> {
        match fs::read(&self.record) {
            // What another version wrote differently is no reason never to start again.
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(&self.record)(error)),
        }
    }
}

/// Deletes the copies of images that a predecessor kept.
async fn remove_copies(configuration: &Configuration) {
    let Some(keep) = configuration.keep.clone() else {
        return;
    };
    let name = configuration.name.clone();
    let removed = spawn_blocking(move || keep::remove_leftovers(&keep, &name)).await;
    for path in removed.unwrap_or_default() {
        report::warning(format_args!(
            "left by an earlier nbd-proxy: {} is deleted",
            path.display()
        ));
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    let path = path.to_path_buf();
    move |source| ClaimError::File { path, source }
}

/// The image's name and its user's are not everybody's affair.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(content)
}

/// Whoever can open a lock can hold it, so nobody else is to.
async fn lock(name: &str, path: &Path) -> Result<File, ClaimError> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(path)
        .map_err(file_error(path))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(INTERVAL).await,
            Err(Errno::WOULDBLOCK) => {
                return Err(ClaimError::Busy {
                    name: name.into(),
                    process: owner(&mut file),
                });
            }
            Err(error) => return Err(file_error(path)(error.into())),
        }
    }
    note_owner(&mut file).map_err(file_error(path))?;
    Ok(file)
}

/// The number is for people alone: who owns the lock is the kernel's knowledge.
fn note_owner(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())
}

fn owner(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(20).read_to_string(&mut text) {
        Ok(length) if length > 0 => text,
        _ => "unknown".into(),
    }
}
