//! How often something is said that a stranger can cause: often enough to be noticed, too seldom to fill a disk.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A token bucket for messages of one kind.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// How many may come at once.
    burst: u32,
    /// In this time there is room for one more.
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many may come now, as of `since`.
    room: u32,
    /// None before the first.
    since: Option<Instant>,
    omitted: u64,
}

impl Throttle {
    /// Full of room.
    pub(crate) const fn new(burst: u32, interval: Duration) -> Self {
        Self {
            burst,
            interval,
            state: Mutex::new(State {
                room: burst,
                since: None,
                omitted: 0,
            }),
        }
    }

    /// Whether a message may come now; then how many were omitted before it.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.refill(&mut state, now);
        if state.room == 0 {
            state.omitted += 1;
            return None;
        }
        state.room -= 1;
        Some(std::mem::take(&mut state.omitted))
    }

    fn refill(&self, state: &mut State, now: Instant) {
        let since = *state.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_nanos();
        let fresh = u32::try_from(passed / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        if state.room.saturating_add(fresh) >= self.burst {
            state.room = self.burst;
            state.since = Some(now);
        } else {
            state.room += fresh;
            state.since = since.checked_add(self.interval * fresh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_at_a_time_with_the_number_of_those_omitted() {
        let throttle = Throttle::new(3, Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let admitted = (0..100)
            .filter(|_| throttle.admit(start) == Some(0))
            .count();
        assert_eq!(admitted, 3);
        assert_eq!(throttle.admit(at(9)), None);
        assert_eq!(throttle.admit(at(10)), Some(98));
        assert_eq!(throttle.admit(at(19)), None);
        assert_eq!(throttle.admit(at(25)), Some(1));
        // The five seconds over are not forgotten.
        assert_eq!(throttle.admit(at(30)), Some(0));
        assert_eq!(throttle.admit(at(30)), None);
    }

    #[test]
    fn after_silence_there_is_room_for_a_burst_and_no_more() {
        let throttle = Throttle::new(3, Duration::from_secs(10));
        let start = Instant::now();
        for moment in [start, start + Duration::from_secs(1_000_000)] {
            let admitted = (0..100).filter_map(|_| throttle.admit(moment)).count();
            assert_eq!(admitted, 3);
        }
    }
}
