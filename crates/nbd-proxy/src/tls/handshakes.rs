//! Handshakes with strangers, bounded in time and number. Where there are too many, the one that has taken longest is
//! given up: who stalls makes room for who doesn't.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

/// Handshakes that are under way.
#[derive(Debug)]
pub(crate) struct Handshakes {
    most: usize,
    patience: Duration,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// Oldest first. Who drops one of these gives that handshake up.
    turns: VecDeque<(u64, oneshot::Sender<()>)>,
    next: u64,
}

impl Handshakes {
    /// At most `most` at once, `patience` for each.
    pub(crate) fn new(most: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            most,
            patience,
            under_way: Mutex::default(),
        })
    }

    /// Carries one out. None if it was given up.
    pub(crate) async fn run<F: Future>(&self, handshake: F) -> Option<F::Output> {
        let (_turn, given_up) = self.begin();
        tokio::select! {
            done = timeout(self.patience, handshake) => done.ok(),
            _ = given_up => None,
        }
    }

    fn begin(&self) -> (Turn<'_>, oneshot::Receiver<()>) {
        let (turn, given_up) = oneshot::channel();
        let mut under_way = self.under_way();
        if under_way.turns.len() >= self.most {
            under_way.turns.pop_front();
        }
        let number = under_way.next;
        under_way.next += 1;
        under_way.turns.push_back((number, turn));
        let turn = Turn {
            handshakes: self,
            number,
        };
        (turn, given_up)
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake's place, which is free again when this is dropped.
struct Turn<'a> {
    handshakes: &'a Handshakes,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let turns = &mut self.handshakes.under_way().turns;
        turns.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::JoinHandle;

    use super::*;

    /// What a task gives; a handshake that should end and doesn't is a failure, not a wait without end.
    async fn soon<T>(task: JoinHandle<T>) -> T {
        let ended = timeout(Duration::from_secs(30), task).await;
        ended.expect("given up").unwrap()
    }

    #[tokio::test]
    async fn who_stalls_is_given_up_in_time() {
        let handshakes = Handshakes::new(2, Duration::from_millis(1));
        assert_eq!(handshakes.run(pending::<()>()).await, None);
        let patient = Handshakes::new(2, Duration::MAX);
        assert_eq!(patient.run(ready(7)).await, Some(7));
    }

    #[tokio::test]
    async fn the_oldest_makes_room_for_the_newest() {
        let handshakes = Handshakes::new(2, Duration::MAX);
        let stall = || {
            let handshakes = Arc::clone(&handshakes);
            tokio::spawn(async move { handshakes.run(pending::<()>()).await })
        };
        let (first, second) = (stall(), stall());
        tokio::task::yield_now().await;
        assert_eq!(handshakes.run(ready(())).await, Some(()));
        assert_eq!(soon(first).await, None);
        assert!(!second.is_finished());
        let third = stall();
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "a place was free");
        let fourth = stall();
        assert_eq!(soon(second).await, None);
        assert!(!third.is_finished() && !fourth.is_finished());
    }
}
