//! Small reads near to each other: of a region where there was one lately, the rest is asked for with the second.
//!
//! A browser takes as long for a region as for a sector, and a line's round trip is the same for both. Where reads are
//! scattered all over an image, that would be a waste: so each region costs credit, which only its use brings back.

use std::collections::VecDeque;
use std::ops::Range;

/// The longest read that counts as small, in bytes.
const SMALL: u64 = 32 << 10;
/// How many regions of reads are remembered.
const REMEMBERED: usize = 64;
/// Credit at first, and at most; what a region costs; a read that was there already brings 1.
const FIRST: u32 = 16;
const MOST: u32 = 64;
const COST: u32 = 2;

/// Where the latest small reads were.
#[derive(Debug)]
pub(crate) struct Locality {
    /// Where they began, the latest first.
    places: VecDeque<u64>,
    credit: u32,
}

impl Locality {
    pub(crate) fn new() -> Self {
        Self {
            places: VecDeque::new(),
            credit: FIRST,
        }
    }

    /// A small read was not here. Gives the region of `length` bytes, a power of two, that may be worth having.
    pub(crate) fn miss(&mut self, range: &Range<u64>, length: u64) -> Option<Range<u64>> {
        if range.end - range.start > SMALL {
            return None;
        }
        let region = |at: u64| at / length;
        let is_near = self
            .places
            .iter()
            .any(|at| region(*at) == region(range.start));
        self.places.truncate(REMEMBERED - 1);
        self.places.push_front(range.start);
        if !is_near || self.credit < COST {
            return None;
        }
        self.credit -= COST;
        let start = region(range.start) * length;
        Some(start..start + length)
    }

    /// A read found what had been asked for because it was near.
    pub(crate) fn hit(&mut self) {
        self.credit = (self.credit + 1).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: u64 = 256 << 10;

    fn miss(locality: &mut Locality, at: u64) -> Option<Range<u64>> {
        locality.miss(&(at..at + 4096), REGION)
    }

    #[test]
    fn the_second_small_read_of_a_region_is_worth_all_of_it() {
        let mut locality = Locality::new();
        assert_eq!(miss(&mut locality, 5 * REGION), None);
        assert_eq!(miss(&mut locality, 7 * REGION), None);
        let found = miss(&mut locality, 6 * REGION - 4096);
        assert_eq!(found, Some(5 * REGION..6 * REGION));
        assert_eq!(locality.miss(&(5 * REGION..6 * REGION), REGION), None);
    }

    #[test]
    fn where_that_is_of_no_use_it_ends() {
        let mut locality = Locality::new();
        let mut asked = |count| {
            let miss = |at: u64| miss(&mut locality, at / 2 * REGION + at % 2 * 4096);
            (0..count).filter_map(miss).count()
        };
        assert_eq!(asked(1000), (FIRST / COST) as usize);
        assert_eq!(asked(1000), 0);
        locality.hit();
        locality.hit();
        assert!(miss(&mut locality, 999 / 2 * REGION + 8192).is_some());
    }
}
