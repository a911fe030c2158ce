//! Where the copy of an image is kept, so that the one who serves it may go.
//!
//! A store blocks, so it has a thread of its own: tasks go to it in order, and what came of them comes back as events
//! of the session. It goes with its [`Keeper`].

mod file;
mod ground;
mod memory;
mod work;

use std::{io, path::PathBuf, sync::mpsc as blocking, thread};

use nbd::Payload;
use nbd_session::{StoreAction, StoreId};
use tokio::sync::mpsc;

pub(crate) use file::remove_leftovers;
pub(crate) use work::Hasher;
use work::Task;

use crate::{
    config::{Keep, Place},
    units,
};

/// Keeps bytes of an image at their offsets. Every call may block.
trait Store: Send {
    fn write(&mut self, offset: u64, data: &Payload) -> io::Result<()>;

    /// Gives bytes that were written before.
    fn read(&mut self, offset: u64, length: u32) -> io::Result<Payload>;

    /// After this nothing that was written can fail to reach its place any more.
    fn sync(&mut self) -> io::Result<()>;
}

/// What is to be kept.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Of the configuration.
    pub(crate) name: String,
    /// The session's ID: 32 hexadecimal digits.
    pub(crate) session: String,
    /// The image's length, in bytes.
    pub(crate) size: u64,
    /// The path of the device that shows the image.
    pub(crate) device: String,
}

/// What came of something.
#[derive(Debug)]
pub(crate) enum Kept {
    /// The store is there and has room for the whole image.
    Opened,
    /// There is no store; a sentence says why.
    Refused(String),
    /// A task is done, or failed for this cause.
    Done(StoreId, Result<Payload, String>),
    /// The word of the hasher that [`Keeper::hash`] was given.
    Hashed(String),
}

/// A store at work. When this is dropped, the store goes, and what it has.
#[derive(Debug)]
pub(crate) struct Keeper {
    tasks: blocking::Sender<Task>,
    events: mpsc::UnboundedReceiver<Kept>,
    _file: Option<file::Name>,
}

impl Keeper {
    /// Begins to open a store; [`Kept::Opened`] or [`Kept::Refused`] comes first of all.
    pub(crate) fn start(keep: Keep, subject: Subject) -> io::Result<Self> {
        let (tasks, inbox) = blocking::channel();
        let (outbox, events) = mpsc::unbounded_channel();
        let file = match &keep.place {
            Place::Memory => None,
            Place::Directory(directory) => Some(file::Name::new(directory, &subject)),
        };
        let path = file.as_ref().map(|name| name.path().to_owned());
        thread::Builder::new().name("keep".into()).spawn(move || {
            match open(&keep, &subject, path) {
                Ok(mut store) => {
                    if outbox.send(Kept::Opened).is_ok() {
                        work::run(store.as_mut(), subject.size, &inbox, &outbox);
                    }
                }
                // Whoever is not there any more need not know.
                Err(refusal) => drop(outbox.send(Kept::Refused(refusal))),
            }
        })?;
        Ok(Self {
            tasks,
            events,
            _file: file,
        })
    }

    /// Gives the store a task.
    pub(crate) fn give(&self, task: StoreId, action: StoreAction) {
        // A store that is gone has said so by the end of its events.
        let _ = self.tasks.send(Task::Action(task, action));
    }

    /// The copy is whole: [`Kept::Hashed`] comes once there was time to read it. Tasks go first.
    pub(crate) fn hash(&self, hasher: Box<dyn Hasher>) {
        let _ = self.tasks.send(Task::Hash(hasher));
    }

    /// What happens next; `None` when the thread is gone.
    pub(crate) async fn event(&mut self) -> Option<Kept> {
        self.events.recv().await
    }
}

fn open(keep: &Keep, subject: &Subject, path: Option<PathBuf>) -> Result<Box<dyn Store>, String> {
    let size = subject.size;
    if let Some(limit) = keep.limit.filter(|limit| *limit < size) {
        return Err(format!(
            "the image has {}, and \"keep\" is limited to {}; raise its \"limit\"",
            units::bytes(size),
            units::bytes(limit)
        ));
    }
    match (&keep.place, path) {
        (Place::Directory(directory), Some(path)) => {
            let store = file::FileStore::open(directory, path, subject)?;
            Ok(Box::new(store))
        }
        _ => Ok(Box::new(memory::MemoryStore::open(size)?)),
    }
}

#[cfg(test)]
mod tests;
