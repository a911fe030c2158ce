//! What is noted of a session in `R/NAME.session`, for the process that comes after us: it goes on with a device that
//! is there without us.

#[cfg(feature = "serve")]
mod reading;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nbd_session::Snapshot;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{link::Peer, paths, report};
#[cfg(feature = "serve")]
pub(crate) use reading::read;

/// Grows with each change that an older nbd-proxy would misunderstand.
const VERSION: u32 = 1;
const SUFFIX: &str = "session";

/// A session, as another process has to know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its ID, part of the device's backend identifier.
    pub(crate) id: String,
    /// The device's path.
    pub(crate) device: String,
    /// Who serves the image, or did so last.
    pub(crate) peer: Peer,
    /// Since when there is a session, in milliseconds since 1970.
    pub(crate) since: u64,
    /// Bytes that the machine has read.
    pub(crate) bytes_read: u64,
    /// Requests of the machine that were answered.
    pub(crate) requests: u64,
    /// Who used the device when `start` had ended.
    pub(crate) hook_users: Vec<String>,
    /// The image.
    pub(crate) snapshot: Snapshot,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    version: u32,
    session: R,
}

/// Forgets what was noted of configuration `name`; gives whether anything was.
pub(crate) fn remove(runtime_dir: &Path, name: &str) -> io::Result<bool> {
    remove_file(&path(runtime_dir, name))
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn path(runtime_dir: &Path, name: &str) -> PathBuf {
    paths::runtime_file(runtime_dir, name, SUFFIX)
}

/// Puts a record in place at once: whoever reads finds the old one or the new one.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    let part = path.with_extension("session-part");
    let text = serde_json::to_vec(&Versioned {
        version: VERSION,
        session: record,
    })?;
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)?;
    file.write_all(&text)?;
    fs::rename(&part, path)
}

/// Keeps a session's record, beside the session's task: that never waits for a disk.
#[derive(Debug)]
pub(crate) struct Recorder(mpsc::UnboundedSender<Order>);

/// What is to be done, with somebody who wants to know when it is done, and whether it worked.
#[derive(Debug)]
struct Order {
    record: Option<Box<Record>>,
    done: Option<oneshot::Sender<bool>>,
}

/// Gives whether what was to be done is done.
#[derive(Debug)]
pub(crate) struct Done(oneshot::Receiver<bool>);

impl Done {
    pub(crate) async fn wait(self) -> bool {
        self.0.await.unwrap_or(false)
    }
}

impl Recorder {
    /// For configuration `name`. Must be called within the runtime.
    pub(crate) fn new(runtime_dir: &Path, name: &str) -> Self {
        let (sender, orders) = mpsc::unbounded_channel();
        tokio::spawn(keep(path(runtime_dir, name), name.to_owned(), orders));
        Self(sender)
    }

    /// Notes what the session is now.
    pub(crate) fn note(&self, record: Record) {
        self.order(Some(record), None);
    }

    /// Notes what the session is now, for good.
    #[cfg(feature = "serve")]
    pub(crate) fn leave(&self, record: Record) -> Done {
        self.ask(Some(record))
    }

    /// Nobody is to go on with the session any more.
    pub(crate) fn forget(&self) -> Done {
        self.ask(None)
    }

    fn ask(&self, record: Option<Record>) -> Done {
        let (done, told) = oneshot::channel();
        self.order(record, Some(done));
        Done(told)
    }

    fn order(&self, record: Option<Record>, done: Option<oneshot::Sender<bool>>) {
        let record = record.map(Box::new);
        // The task lives as long as we, unless the runtime ends.
        let _ = self.0.send(Order { record, done });
    }
}

async fn keep(path: PathBuf, name: String, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut has_warned = false;
    while let Some(Order { record, done }) = orders.recv().await {
        let path = path.clone();
        let result = spawn_blocking(move || match record {
            Some(record) => write(&path, &record),
            None => remove_file(&path).map(drop),
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = &result
            && !std::mem::replace(&mut has_warned, true)
        {
            report::warning(format_args!(
                "configuration {name:?}: the session can't be noted for a later nbd-proxy: {error}"
            ));
        }
        if let Some(done) = done {
            let _ = done.send(result.is_ok());
        }
    }
}

#[cfg(test)]
#[cfg(feature = "serve")]
mod tests;
