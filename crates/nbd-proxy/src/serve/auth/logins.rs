//! Who has signed in: one cookie each, known by its hash, and kept across restarts, so that a page that serves an image
//! finds its way back to a server that was started again.

mod table;

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::{
    accounts::now,
    private_file, report,
    secret::{Digest, Secret, random_hex},
};
pub(super) use table::{Found, Means};
use table::{Login, Table};

/// Of the file's form.
const VERSION: u32 = 1;

/// All logins.
#[derive(Debug)]
pub(super) struct Logins {
    table: Mutex<Table>,
    /// None: they end with us.
    file: Option<LoginsFile>,
    /// Whoever writes the file; what they write is what is so once it is their turn.
    turn: tokio::sync::Mutex<()>,
    failing: AtomicBool,
}

/// The file, and that no other server has it.
#[derive(Debug)]
struct LoginsFile {
    path: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Saved<T> {
    version: u32,
    logins: T,
}

impl Logins {
    /// Those that `state_dir` holds. Without a directory that we can write to and that no other server has, they are
    /// kept in memory alone, and a warning says so.
    pub(super) fn open(state_dir: anyhow::Result<PathBuf>) -> Self {
        let file = state_dir
            .and_then(|directory| LoginsFile::lock(&directory))
            .inspect_err(|error| {
                report::warning(format_args!(
                    "whoever signs in has to do it again when this server is started again: {}",
                    report::sentence(error)
                ));
            })
            .ok();
        let mut table = Table::default();
        if let Some(file) = &file {
            table.insert_all(file.load(), now());
        }
        Self {
            table: Mutex::new(table),
            file,
            turn: tokio::sync::Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }

    /// A new login of `user`; its cookie's value.
    pub(super) async fn create(
        &self,
        user: &str,
        means: Means,
    ) -> Result<Secret, getrandom::Error> {
        let secret = Secret::generate()?;
        let login = Login::new(random_hex::<8>()?, user, means, secret.digest(), now());
        self.table().insert(login, now());
        self.save().await;
        Ok(secret)
    }

    /// Whose login has this cookie.
    pub(super) fn find(&self, value: &str) -> Option<Found> {
        self.table().find(Digest::of(value), now())
    }

    /// It was used. Returns a new value for its cookie when that is due.
    pub(super) async fn renew(&self, found: &Found) -> Option<Secret> {
        let fresh = Secret::generate().ok()?;
        let (changed, renewed) = {
            let mut table = self.table();
            let renewed = table.renew(found, fresh.digest(), now());
            (table.touch(&found.id, now()) || renewed, renewed)
        };
        if changed {
            self.save().await;
        }
        renewed.then_some(fresh)
    }

    /// It is in use.
    pub(super) async fn touch(&self, id: &str) {
        if self.table().touch(id, now()) {
            self.save().await;
        }
    }

    /// Ends it, for whatever it has opened too.
    pub(super) async fn revoke(&self, found: &Found) {
        found.revoke();
        if self.table().remove(&found.id) {
            self.save().await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn save(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let _turn = self.turn.lock().await;
        let saved = {
            let mut table = self.table();
            table.drop_expired(now());
            serde_json::to_vec(&Saved {
                version: VERSION,
                logins: table.all(),
            })
        };
        let path = file.path.clone();
        let written = spawn_blocking(move || -> anyhow::Result<()> {
            Ok(private_file::write(&path, &saved?)?)
        });
        let failure = match written.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(error.into()),
        };
        let failed_before = self.failing.swap(failure.is_some(), Ordering::Relaxed);
        if let Some(error) = failure.filter(|_| !failed_before) {
            report::warning(format_args!(
                "whoever signs in has to do it again when this server is started again: {}",
                report::sentence(&error)
            ));
        }
    }
}

impl LoginsFile {
    fn lock(directory: &Path) -> anyhow::Result<Self> {
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("logins.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            anyhow::anyhow!(
                "another nbd-proxy serve uses the state directory {}; give this one its own with \"state-dir\" in \
                 \"serve\"",
                directory.display()
            )
        })?;
        Ok(Self {
            path: directory.join("logins.json"),
            _lock: lock,
        })
    }

    fn load(&self) -> Vec<Login> {
        let loaded = || -> anyhow::Result<Vec<Login>> {
            let Some(content) = private_file::read(&self.path)? else {
                return Ok(Vec::new());
            };
            let saved: Saved<Vec<Login>> = serde_json::from_slice(&content)?;
            anyhow::ensure!(saved.version == VERSION, "its version is {}", saved.version);
            Ok(saved.logins)
        };
        loaded().unwrap_or_else(|error| {
            report::warning(format_args!(
                "{} is not used, so that everybody has to sign in again: {}",
                self.path.display(),
                report::sentence(&error)
            ));
            Vec::new()
        })
    }
}
