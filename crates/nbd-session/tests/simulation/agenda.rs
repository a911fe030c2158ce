//! Virtual time, and what is to happen when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Virtual time is counted in microseconds.
pub(crate) const MILLISECOND: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;

/// Events in the order of their times; at the same time, in the order they were planned.
pub(crate) struct Agenda<E> {
    /// The present.
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), E>,
    planned: u64,
    epoch: Instant,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self {
            now: 0,
            events: BTreeMap::new(),
            planned: 0,
            epoch: Instant::now(),
        }
    }

    pub(crate) fn at(&mut self, at: u64, event: E) {
        self.events.insert((at, self.planned), event);
        self.planned += 1;
    }

    pub(crate) fn after(&mut self, delay: u64, event: E) {
        self.at(self.now + delay, event);
    }

    /// When the next event is.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.events.keys().next().map(|(at, _)| *at)
    }

    /// Takes the next event; it is its time now.
    pub(crate) fn take_next(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// The present, as the session counts it.
    pub(crate) fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    /// A time of the session's.
    pub(crate) fn time_of(&self, instant: Instant) -> u64 {
        u64::try_from((instant - self.epoch).as_micros()).unwrap()
    }
}
