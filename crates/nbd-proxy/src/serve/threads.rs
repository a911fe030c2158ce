//! The threads on which sessions run, each with a runtime of its own. What a session consists of wakes each other all the
//! time, and is on one thread: there a wake is a place in a queue, where another thread would have to be woken.

use std::{convert::Infallible, io, thread};

use tokio::{
    runtime::{Builder, Handle, Id},
    sync::oneshot,
};

/// How many there are at most: those who serve images and read devices want processors, too.
const MOST: usize = 4;

/// All of them. When this is dropped, they end, but for the calling one; nobody waits for them, since a task may be
/// stuck in a system call on a device.
pub(super) struct Threads {
    runtimes: Vec<Handle>,
    _running: Vec<oneshot::Sender<Infallible>>,
}

impl Threads {
    /// As many as there are processors, and four at most. The calling one, within whose runtime this must be called, is
    /// the last: it has everybody's requests to answer as well.
    pub(super) fn start() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let others = (1..processors.min(MOST)).map(|_| start_one());
        let (mut runtimes, running): (Vec<_>, _) =
            others.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        runtimes.push(Handle::current());
        Ok(Self {
            runtimes,
            _running: running,
        })
    }

    /// The runtimes, in an order that stays.
    pub(super) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }
}

fn start_one() -> io::Result<(Handle, oneshot::Sender<Infallible>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (running, end) = oneshot::channel();
    thread::Builder::new()
        .name("sessions".to_owned())
        .spawn(move || {
            let _ = runtime.block_on(end);
            runtime.shutdown_background();
        })?;
    Ok((handle, running))
}

/// The runtime that has the fewest of these sessions, which are told by their runtimes; of several, the first from
/// number `from` on. The present one where there are none. Must be called within a runtime.
pub(super) fn idlest(runtimes: &[Handle], sessions: &[Id], from: usize) -> Handle {
    let sessions_of = |runtime: &&Handle| {
        let id = runtime.id();
        sessions.iter().filter(|session| **session == id).count()
    };
    (runtimes.iter().cycle())
        .skip(from % runtimes.len().max(1))
        .take(runtimes.len())
        .min_by_key(sessions_of)
        .map_or_else(Handle::current, Handle::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spawned_on_a_thread_stays_on_it_and_ends_with_it() {
        let (runtime, running) = start_one().unwrap();
        let id = runtime.id();
        let stays = runtime.spawn(async move {
            let inner = tokio::spawn(async { Handle::current().id() });
            inner.await.unwrap() == id && Handle::current().id() == id
        });
        assert!(stays.await.unwrap());
        let endless = runtime.spawn(std::future::pending::<()>());
        drop(running);
        assert!(endless.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn the_calling_thread_is_the_last_of_as_many_as_there_are_processors() {
        let threads = Threads::start().unwrap();
        let processors = thread::available_parallelism().unwrap().get();
        assert_eq!(threads.runtimes().len(), processors.min(MOST));
        let last = threads.runtimes().last().map(Handle::id);
        assert_eq!(last, Some(Handle::current().id()));
    }

    #[tokio::test]
    async fn a_session_begins_where_there_are_the_fewest() {
        let others = [start_one().unwrap(), start_one().unwrap()];
        let runtimes = [Handle::current(), others[0].0.clone(), others[1].0.clone()];
        let ids: Vec<_> = runtimes.iter().map(Handle::id).collect();
        let chosen = |sessions: &[usize], from| {
            let sessions: Vec<_> = sessions.iter().map(|index| ids[*index]).collect();
            idlest(&runtimes, &sessions, from).id()
        };
        assert_eq!(chosen(&[0, 2], 0), ids[1]);
        assert_eq!(chosen(&[0, 0, 1, 2, 2], 2), ids[1]);
        // Where there are as many everywhere, which one depends on who asks: several may at once.
        assert_eq!(chosen(&[], 1), ids[1]);
        assert_eq!(chosen(&[0, 1, 2], 5), ids[2]);
        assert_eq!(chosen(&[2], 2), ids[0]);
        assert_eq!(idlest(&[], &[], 3).id(), ids[0]);
    }
}
