//! What is noted of a session in `R/NAME.session`, for the process that comes after us: it goes on with a device that
//! is there without us.

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
    /// Since when there is a session, in seconds since 1970.
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

/// Why a record is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// It can't be read.
    #[error("can't read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not one, or not one of ours.
    #[error("{} is damaged: {cause}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// Its writer was older or newer.
    #[error("{} was written by another version of nbd-proxy", .0.display())]
    Foreign(PathBuf),
}

/// Reads what was noted of configuration `name`; `None` where nothing was.
pub(crate) fn read(runtime_dir: &Path, name: &str) -> Result<Option<Record>, RecordError> {
    let path = path(runtime_dir, name);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::File { path, source }),
    };
    match serde_json::from_slice::<Versioned<serde::de::IgnoredAny>>(&text) {
        Ok(found) if found.version != VERSION => return Err(RecordError::Foreign(path)),
        Ok(_) => {}
        Err(cause) => return Err(RecordError::Damaged { path, cause }),
    }
    match serde_json::from_slice::<Versioned<Record>>(&text) {
        Ok(found) => Ok(Some(found.session)),
        Err(cause) => Err(RecordError::Damaged { path, cause }),
    }
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
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn record() -> Record {
        let snapshot = serde_json::json!({
            "image": {"name": "x.iso", "size": 4096, "modified": 1},
            "announced": true,
            "export": {
                "name": "x.iso", "description": null, "size": 4096, "flags": 3, "block_sizes": null
            },
            "seen": {
                "key": u64::MAX, "edges": [{"offset": 0, "length": 4096, "hash": [1, u64::MAX]}],
                "blocks": [], "reads": 0
            },
        });
        Record {
            id: "0f".repeat(16),
            device: "/dev/nbd0".into(),
            peer: Peer {
                user: "local".into(),
                from: "127.0.0.1:5".into(),
                session: None,
            },
            since: 1_700_000_000,
            bytes_read: 3,
            requests: 2,
            hook_users: vec!["mounted on /mnt".into()],
            snapshot: serde_json::from_value(snapshot).unwrap(),
        }
    }

    #[tokio::test]
    async fn what_was_noted_is_found_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), "0").unwrap(), None);
        let recorder = Recorder::new(folder.path(), "0");
        recorder.note(Record {
            requests: 1,
            ..record()
        });
        assert!(recorder.ask(Some(record())).wait().await);
        assert_eq!(read(folder.path(), "0").unwrap(), Some(record()));
        let mode = fs::metadata(path(folder.path(), "0"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(read(folder.path(), "1").unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_forgotten_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(folder.path(), "0");
        recorder.note(record());
        assert!(recorder.forget().wait().await);
        assert!(recorder.forget().wait().await);
        assert_eq!(read(folder.path(), "0").unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_another_version_wrote_is_no_record_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let try_text = |text: &str| {
            fs::write(path(folder.path(), "0"), text).unwrap();
            read(folder.path(), "0").unwrap_err()
        };
        let foreign = try_text(r#"{"version": 2, "session": {"of": "the future"}}"#);
        assert!(matches!(foreign, RecordError::Foreign(_)), "{foreign}");
        for text in ["", "{}", r#"{"version": 1, "session": {}}"#, "\0\0"] {
            let damaged = try_text(text);
            assert!(matches!(damaged, RecordError::Damaged { .. }), "{damaged}");
        }
        assert!(remove(folder.path(), "0").unwrap());
        assert!(!remove(folder.path(), "0").unwrap());
    }
}
