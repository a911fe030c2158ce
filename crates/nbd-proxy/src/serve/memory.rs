//! Memory that all sessions share. Each gets a part when it begins, and gives it back when it ends.
//!
//! As many as there may be sessions get the least that one needs, so nobody is refused for want of memory. Beyond that,
//! whoever comes gets what they want, but no more than a quarter of what is left: the first few have plenty.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::LEAST_MEMORY;

/// All of it.
#[derive(Debug)]
pub(super) struct Memory {
    /// What each session has in any case, in bytes.
    floor: u64,
    /// What is left beyond that, in bytes.
    surplus: Mutex<u64>,
}

/// The part of one session.
#[derive(Debug)]
pub(super) struct Part {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// `total` bytes for at most so many sessions.
    pub(super) fn new(total: u64, sessions: usize) -> Arc<Self> {
        let sessions = u64::try_from(sessions).unwrap_or(u64::MAX).max(1);
        let floor = (total / sessions / 2).max(LEAST_MEMORY);
        let surplus = total.saturating_sub(floor.saturating_mul(sessions));
        Arc::new(Self {
            floor,
            surplus: Mutex::new(surplus),
        })
    }

    /// A part of at most `wanted` bytes.
    pub(super) fn part(self: &Arc<Self>, wanted: u64) -> Part {
        let mut surplus = self.surplus();
        let bytes = wanted.min(self.floor + *surplus / 4);
        *surplus -= bytes.saturating_sub(self.floor);
        Part {
            memory: Arc::clone(self),
            bytes,
        }
    }

    fn surplus(&self) -> MutexGuard<'_, u64> {
        self.surplus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        *self.memory.surplus() += self.bytes.saturating_sub(self.memory.floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_first_get_what_they_want_and_all_together_no_more_than_there_is() {
        for sessions in [1, 2, 64] {
            let memory = Memory::new(1024 * MIB, sessions);
            let parts: Vec<_> = (0..sessions).map(|_| memory.part(128 * MIB)).collect();
            assert_eq!(parts[0].bytes(), 128 * MIB);
            assert!(parts.iter().all(|part| part.bytes() >= LEAST_MEMORY));
            assert!(parts.iter().map(Part::bytes).sum::<u64>() <= 1024 * MIB);
        }
    }

    #[test]
    fn one_that_wants_everything_leaves_more_than_half_of_it_to_others() {
        let memory = Memory::new(1024 * MIB, 4);
        let greedy = memory.part(u64::MAX);
        assert!(greedy.bytes() < 512 * MIB);
        assert!(memory.part(128 * MIB).bytes() == 128 * MIB);
    }

    #[test]
    fn what_a_session_had_is_there_again_when_it_has_ended() {
        let memory = Memory::new(1024 * MIB, 64);
        let first = memory.part(u64::MAX).bytes();
        for _ in 0..1000 {
            assert_eq!(memory.part(u64::MAX).bytes(), first);
        }
    }
}
