//! What a store's thread does: tasks as they come, and a hash of the whole copy while there are none.

use std::{fmt, io, sync::mpsc as blocking};

use nbd::Payload;
use nbd_session::{StoreAction, StoreId};
use tokio::sync::mpsc;

use super::{Kept, Store};

/// How much is hashed between two looks for a task, in bytes: a few milliseconds, which no request of the machine
/// minds.
const PIECE: u32 = 1 << 20;

/// Something that is fed bytes, and then says in a word what they were.
pub(crate) trait Hasher: fmt::Debug + Send {
    /// The next bytes.
    fn update(&mut self, bytes: &[u8]);

    /// The word.
    fn finish(self: Box<Self>) -> String;
}

/// What a store is to do.
#[derive(Debug)]
pub(super) enum Task {
    /// What the volume wants.
    Action(StoreId, StoreAction),
    /// Read the whole copy, which is complete, in idle moments.
    Hash(Box<dyn Hasher>),
}

/// A hash under way.
struct Hashing {
    hasher: Box<dyn Hasher>,
    at: u64,
}

/// Does tasks until nobody is there any more. The copy is of `size` bytes.
pub(super) fn run(
    store: &mut dyn Store,
    size: u64,
    tasks: &blocking::Receiver<Task>,
    events: &mpsc::UnboundedSender<Kept>,
) {
    let mut hashing = None;
    loop {
        let task = match hashing {
            Some(_) => tasks.try_recv(),
            None => tasks.recv().map_err(blocking::TryRecvError::from),
        };
        let event = match task {
            Ok(Task::Action(id, action)) => {
                let result = carry_out(store, action);
                Some(Kept::Done(id, result.map_err(|error| error.to_string())))
            }
            Ok(Task::Hash(hasher)) => {
                hashing = Some(Hashing { hasher, at: 0 });
                None
            }
            Err(blocking::TryRecvError::Empty) => go_on(store, size, &mut hashing),
            Err(blocking::TryRecvError::Disconnected) => return,
        };
        if event.is_some_and(|event| events.send(event).is_err()) {
            return;
        }
    }
}

fn carry_out(store: &mut dyn Store, action: StoreAction) -> io::Result<Payload> {
    match action {
        StoreAction::Write { offset, data } => store.write(offset, &data).map(|()| Payload::new()),
        StoreAction::Read { offset, length } => store.read(offset, length),
        StoreAction::Sync => store.sync().map(|()| Payload::new()),
    }
}

/// Hashes the next piece, or is done. A copy that can't be read has no hash; whoever reads from it will notice.
fn go_on(store: &mut dyn Store, size: u64, hashing: &mut Option<Hashing>) -> Option<Kept> {
    let Hashing { mut hasher, at } = hashing.take()?;
    let length = u32::try_from(size - at).unwrap_or(PIECE).min(PIECE);
    if length == 0 {
        return Some(Kept::Hashed(hasher.finish()));
    }
    let data = store.read(at, length).ok()?;
    data.parts().iter().for_each(|part| hasher.update(part));
    *hashing = Some(Hashing {
        hasher,
        at: at + u64::from(length),
    });
    None
}
