//! In which order segments are given up.

use std::collections::BTreeMap;

/// Whether it is still of use, and when it was used last.
pub(super) type Rank = (bool, u64);

/// Offsets of segments that are here, in the order in which they are given up.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    order: BTreeMap<Rank, u64>,
    next: u64,
    /// Bytes of those that are of no more use.
    spent: u64,
}

impl Ranks {
    /// The segment at `start` was used just now.
    pub(super) fn insert(&mut self, start: u64, length: u32, is_of_use: bool) -> Rank {
        let rank = (is_of_use, self.next);
        self.next += 1;
        self.order.insert(rank, start);
        if !is_of_use {
            self.spent += u64::from(length);
        }
        rank
    }

    /// A segment has another rank now, or is gone.
    pub(super) fn remove(&mut self, rank: Rank, length: u32) {
        self.order.remove(&rank);
        if !rank.0 {
            self.spent -= u64::from(length);
        }
    }

    /// The first to be given up, with where its segment begins.
    pub(super) fn first(&self) -> Option<(Rank, u64)> {
        let first = self.order.first_key_value();
        first.map(|(rank, start)| (*rank, *start))
    }

    /// Bytes of segments that are of no more use.
    pub(super) fn spent(&self) -> u64 {
        self.spent
    }
}
