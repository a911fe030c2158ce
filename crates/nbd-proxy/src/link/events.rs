//! What a link reports, on its way to its attachment: a queue that is bounded in events and in bytes.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::{Semaphore, mpsc};

use super::LinkEvent;

/// How many events a link may be ahead of its attachment. The attachment always drains its links, whatever its device
/// does, so this only bounds what a peer that sends without being asked can make us hold.
const EVENTS: usize = 32;

/// A queue for events that hold at most `room` bytes together, or for one that is longer.
pub(crate) fn queue(room: u32) -> (Sender, Events) {
    let (sender, queue) = mpsc::channel(EVENTS);
    let free = Arc::new(Semaphore::new(room as usize));
    let sender = Sender {
        queue: sender,
        free: Arc::clone(&free),
        room,
    };
    (sender, Events { queue, free, room })
}

/// The link's end.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<LinkEvent>,
    /// Bytes for which there is room.
    free: Arc<Semaphore>,
    room: u32,
}

/// Nobody takes the link's events any more.
#[derive(Debug)]
pub(crate) struct Unwanted;

impl Sender {
    /// Waits until there is room.
    pub(crate) async fn send(&self, event: LinkEvent) -> Result<(), Unwanted> {
        let room = self.free.acquire_many(event.takes(self.room)).await;
        room.map_err(|_| Unwanted)?.forget();
        self.queue.send(event).await.map_err(|_| Unwanted)
    }
}

/// The attachment's end. Dropping it ends the link.
#[derive(Debug)]
pub(crate) struct Events {
    queue: mpsc::Receiver<LinkEvent>,
    free: Arc<Semaphore>,
    room: u32,
}

impl Events {
    /// Takes the next events, at most so many; none: there are no more, as [`mpsc::Receiver::poll_recv_many`].
    pub(crate) fn poll_many(
        &mut self,
        context: &mut Context<'_>,
        events: &mut Vec<LinkEvent>,
        most: usize,
    ) -> Poll<()> {
        let known = events.len();
        ready!(self.queue.poll_recv_many(context, events, most));
        let taken = events[known..].iter().map(|event| event.takes(self.room));
        self.free.add_permits(taken.sum::<u32>() as usize);
        Poll::Ready(())
    }

    /// Takes the next event.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) async fn recv(&mut self) -> Option<LinkEvent> {
        let mut event = Vec::with_capacity(1);
        std::future::poll_fn(|context| self.poll_many(context, &mut event, 1)).await;
        event.pop()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.free.close();
    }
}

impl LinkEvent {
    /// How much of `room` bytes it takes.
    fn takes(&self, room: u32) -> u32 {
        let length = match self {
            Self::Data(data) => data.len(),
            Self::Text(text) => text.len(),
            Self::Alive | Self::Closed(_) => 0,
        };
        u32::try_from(length).map_or(room, |length| length.min(room))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::task::yield_now;

    use super::*;

    fn data(length: usize) -> LinkEvent {
        LinkEvent::Data(Bytes::from(vec![7; length]))
    }

    #[tokio::test]
    async fn who_is_ahead_by_as_many_bytes_as_there_is_room_for_waits() {
        let (sender, mut events) = queue(1000);
        for length in [600, 400] {
            sender.send(data(length)).await.unwrap();
        }
        let waiting = tokio::spawn(async move { sender.send(data(1)).await });
        yield_now().await;
        assert!(!waiting.is_finished());
        assert!(matches!(events.recv().await, Some(LinkEvent::Data(data)) if data.len() == 600));
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_event_that_is_longer_than_the_room_has_it_alone() {
        let (sender, mut events) = queue(1000);
        sender.send(data(1)).await.unwrap();
        let sending = tokio::spawn(async move {
            sender.send(data(5000)).await?;
            sender.send(data(1)).await
        });
        for length in [1, 5000, 1] {
            let event = events.recv().await;
            assert!(matches!(event, Some(LinkEvent::Data(data)) if data.len() == length));
        }
        sending.await.unwrap().unwrap();
        assert!(events.recv().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_learns_that_nobody_wants_the_link_any_more() {
        let (sender, events) = queue(1000);
        sender.send(data(1000)).await.unwrap();
        let waiting = tokio::spawn(async move { sender.send(data(1)).await });
        yield_now().await;
        drop(events);
        waiting.await.unwrap().unwrap_err();
    }
}
