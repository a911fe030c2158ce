//! What a busy server keeps for the next message, an idle one gives back: it may be one program of many.

use std::{sync::Arc, time::Duration};

use nbd_kernel::memory::give_back;
use tokio::time::{MissedTickBehavior, interval};

use super::Server;

/// How often it is looked whether anything moves.
const LOOK: Duration = Duration::from_secs(10);

/// What was seen of the sessions.
#[derive(Debug, Default)]
struct Idleness {
    /// Bytes that they had moved.
    moved: u64,
    /// Whether anything was moved since memory was given back.
    moving: bool,
}

impl Idleness {
    /// Whether it is time to give memory back: all sessions together have moved so many bytes, no more than at the last
    /// look, but some since the last time. (Fewer: one of them has ended.)
    fn begins(&mut self, moved: u64) -> bool {
        let is_idle = moved == self.moved;
        let begins = is_idle && self.moving;
        self.moved = moved;
        self.moving = !is_idle;
        begins
    }
}

/// Gives memory back whenever the server falls idle.
pub(super) async fn watch(server: Arc<Server>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idleness = Idleness::default();
    loop {
        looks.tick().await;
        if idleness.begins(server.registry.moved()) {
            give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_time_that_something_was_moved() {
        let mut idleness = Idleness::default();
        let seen = [0, 0, 5, 9, 9, 9, 10, 10, 0, 0, 0];
        let begins = seen.map(|moved| idleness.begins(moved));
        let at: Vec<_> = (0..seen.len()).filter(|index| begins[*index]).collect();
        assert_eq!(at, [4, 7, 9]);
    }
}
