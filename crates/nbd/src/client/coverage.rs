//! Which bytes of a READ have come.

/// How many separate ranges of one reply are kept track of. A server that answers from one end to
/// the other, in whatever order its chunks run in parallel, needs a handful.
pub(super) const MAX_RANGES: usize = 1024;

/// A set of bytes of a request, as sorted ranges that neither touch nor overlap.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    ranges: Vec<(u32, u32)>,
    covered: u32,
}

/// Why a range cannot be added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CoverageError {
    /// Some of it is there already.
    Overlap,
    /// There would be more than [`MAX_RANGES`] ranges.
    TooManyRanges,
}

impl Coverage {
    /// Bytes covered so far.
    pub(super) fn covered(&self) -> u32 {
        self.covered
    }

    /// Adds the bytes from `start` up to `end`, which must be greater.
    pub(super) fn add(&mut self, start: u32, end: u32) -> Result<(), CoverageError> {
        let at = self
            .ranges
            .partition_point(|&(_, other_end)| other_end <= start);
        if self
            .ranges
            .get(at)
            .is_some_and(|&(other_start, _)| other_start < end)
        {
            return Err(CoverageError::Overlap);
        }
        let touches_next = self
            .ranges
            .get(at)
            .is_some_and(|&(other_start, _)| other_start == end);
        let touches_previous = at > 0 && self.ranges[at - 1].1 == start;
        match (touches_previous, touches_next) {
            (true, true) => self.ranges[at - 1].1 = self.ranges.remove(at).1,
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = start,
            (false, false) if self.ranges.len() == MAX_RANGES => {
                return Err(CoverageError::TooManyRanges);
            }
            (false, false) => self.ranges.insert(at, (start, end)),
        }
        self.covered += end - start;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_in_a_row_stay_one_range() {
        let mut coverage = Coverage::default();
        for start in 0..5000 {
            coverage.add(start, start + 1).unwrap();
        }
        assert_eq!(coverage.ranges, [(0, 5000)]);
    }

    #[test]
    fn gaps_are_limited_but_can_be_closed() {
        let mut coverage = Coverage::default();
        let every_second_byte = (0u32..).step_by(2).take(MAX_RANGES);
        for start in every_second_byte {
            coverage.add(start, start + 1).unwrap();
        }
        assert_eq!(coverage.add(5000, 5001), Err(CoverageError::TooManyRanges));
        coverage.add(1, 2).unwrap();
        coverage.add(5000, 5001).unwrap();
    }

    proptest! {
        #[test]
        fn each_byte_is_taken_exactly_once(
            ranges in prop::collection::vec((0u32..64, 1u32..16), 0..64)
        ) {
            let mut coverage = Coverage::default();
            let mut bytes = [false; 80];
            for (start, length) in ranges {
                let range = start as usize..(start + length) as usize;
                let overlaps = bytes[range.clone()].contains(&true);
                prop_assert_eq!(coverage.add(start, start + length).is_err(), overlaps);
                bytes[range].fill(true);
                if overlaps {
                    break;
                }
                let covered = bytes.iter().filter(|&&byte| byte).count();
                prop_assert_eq!(coverage.covered() as usize, covered);
            }
        }
    }
}
