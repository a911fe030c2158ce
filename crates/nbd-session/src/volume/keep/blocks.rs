//! Which blocks of an image a store has, and their hashes.

use std::hash::Hasher;
use std::ops::Range;

use nbd::Payload;
use siphasher::sip::SipHasher13;

/// The shortest block, in bytes, where requests are not shorter.
const SHORTEST: u64 = 64 << 10;
/// With more blocks than this they become longer, ...
const FEW: u64 = 1 << 20;
/// ... and more than this are too many to remember their hashes.
const MOST: u64 = 1 << 26;

/// What is known of each block.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Of the image, in bytes.
    size: u64,
    /// Of a block, in bytes; the last one may be shorter.
    length: u64,
    states: Vec<State>,
    /// Of what was received.
    hashes: Vec<u64>,
    absent: usize,
    /// In bytes.
    present: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Writing,
    Present,
}

impl Blocks {
    /// None present, for an image of `size` bytes of which `most` can be asked for at a time; `None` if these are too
    /// many.
    pub(super) fn new(size: u64, most: u64) -> Option<Self> {
        let wanted = SHORTEST.max((size / FEW).next_power_of_two());
        let length = wanted.min(1 << most.max(1).ilog2());
        let count = Some(size.div_ceil(length)).filter(|count| *count <= MOST)?;
        let count = usize::try_from(count).ok()?;
        Some(Self {
            size,
            length,
            states: vec![State::Absent; count],
            hashes: vec![0; count],
            absent: count,
            present: 0,
        })
    }

    /// A block's length, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How much is present, in bytes.
    pub(super) fn present(&self) -> u64 {
        self.present
    }

    /// Whether there are blocks that nobody has begun to store.
    pub(super) fn has_absent(&self) -> bool {
        self.absent > 0
    }

    pub(super) fn is_complete(&self) -> bool {
        self.present == self.size
    }

    /// The bytes of some blocks.
    pub(super) fn bytes(&self, blocks: &Range<usize>) -> Range<u64> {
        let at = |block: usize| (block as u64 * self.length).min(self.size);
        at(blocks.start)..at(blocks.end)
    }

    /// All blocks from `start` on that are within `length` bytes.
    pub(super) fn following(&self, start: usize, length: u64) -> Range<usize> {
        let count = to_usize(length / self.length).max(1);
        start..start.saturating_add(count).min(self.states.len())
    }

    /// Whether all of these bytes are present.
    pub(super) fn cover(&self, bytes: &Range<u64>) -> bool {
        let (start, end) = (bytes.start / self.length, bytes.end.div_ceil(self.length));
        self.states
            .get(to_usize(start)..to_usize(end))
            .is_some_and(|states| states.iter().all(|state| *state == State::Present))
    }

    /// The first absent blocks from `cursor` on, around the end if need be; at most `length` bytes of them.
    pub(super) fn next_absent(&self, cursor: usize, length: u64) -> Option<Range<usize>> {
        let is_absent = |block: &usize| self.states[*block] == State::Absent;
        let count = self.states.len();
        let start = (cursor..count)
            .chain(0..cursor.min(count))
            .find(is_absent)?;
        let reach = self.following(start, length);
        let end = reach.clone().find(|block| !is_absent(block));
        Some(start..end.unwrap_or(reach.end))
    }

    /// The absent blocks that `data`, from `offset` on, has whole: in runs.
    pub(super) fn absent_within(&self, offset: u64, data: &Payload) -> Vec<Range<usize>> {
        let end = offset.saturating_add(data.len() as u64);
        let start = to_usize(offset.div_ceil(self.length));
        let end = match end >= self.size {
            true => self.states.len(),
            false => to_usize(end / self.length),
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        for block in (start..end).filter(|block| self.states[*block] == State::Absent) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }

    /// These blocks are being stored: `data`, of which the hashes are remembered.
    pub(super) fn begin(&mut self, blocks: &Range<usize>, data: &Payload) {
        let hashes = self.hashes_of(blocks, data);
        self.hashes[blocks.clone()].copy_from_slice(&hashes);
        self.states[blocks.clone()].fill(State::Writing);
        self.absent -= blocks.len();
    }

    /// These blocks are stored.
    pub(super) fn finish(&mut self, blocks: &Range<usize>) {
        let bytes = self.bytes(blocks);
        self.states[blocks.clone()].fill(State::Present);
        self.present += bytes.end - bytes.start;
    }

    /// Whether `data` is what was received for these blocks.
    pub(super) fn match_hashes(&self, blocks: &Range<usize>, data: &Payload) -> bool {
        let bytes = self.bytes(blocks);
        data.len() as u64 == bytes.end - bytes.start
            && self.hashes_of(blocks, data) == self.hashes[blocks.clone()]
    }

    fn hashes_of(&self, blocks: &Range<usize>, data: &Payload) -> Vec<u64> {
        let first = self.bytes(blocks).start;
        blocks
            .clone()
            .map(|block| {
                let bytes = self.bytes(&(block..block + 1));
                let slice = data.slice(to_usize(bytes.start - first)..to_usize(bytes.end - first));
                let mut hasher = SipHasher13::new();
                slice.parts().iter().for_each(|part| hasher.write(part));
                hasher.finish()
            })
            .collect()
    }
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn payload(byte: u8, length: usize) -> Payload {
        Payload::from(Bytes::from(vec![byte; length]))
    }

    fn store(blocks: &mut Blocks, which: Range<usize>, byte: u8) {
        let bytes = blocks.bytes(&which);
        blocks.begin(&which, &payload(byte, to_usize(bytes.end - bytes.start)));
        blocks.finish(&which);
    }

    #[test]
    fn only_whole_blocks_are_taken_from_a_read() {
        let blocks = Blocks::new(10_000, 4096).unwrap();
        let taken = |offset, length| blocks.absent_within(offset, &payload(0, length)).pop();
        assert_eq!(taken(1, 8190), None);
        assert_eq!(taken(1, 8191), Some(1..2));
        assert_eq!(taken(8192, 1808), Some(2..3));
        assert_eq!(taken(8192, 1807), None);
    }

    #[test]
    fn what_is_present_is_neither_taken_nor_asked_for_again() {
        let mut blocks = Blocks::new(10_000, 4096).unwrap();
        store(&mut blocks, 1..2, 7);
        assert_eq!(blocks.absent_within(0, &payload(0, 10_000)), [0..1, 2..3]);
        assert_eq!(blocks.next_absent(0, 1 << 20), Some(0..1));
        assert_eq!(blocks.next_absent(1, 1 << 20), Some(2..3));
        store(&mut blocks, 2..3, 7);
        assert_eq!(blocks.next_absent(2, 1 << 20), Some(0..1));
        assert!(blocks.cover(&(4096..10_000)) && !blocks.cover(&(4095..4097)));
        store(&mut blocks, 0..1, 7);
        assert_eq!(blocks.next_absent(0, 1 << 20), None);
        assert!(blocks.is_complete() && !blocks.has_absent());
    }

    #[test]
    fn other_bytes_than_were_received_are_found_out() {
        let mut blocks = Blocks::new(10_000, 4096).unwrap();
        store(&mut blocks, 0..3, 7);
        assert!(blocks.match_hashes(&(0..3), &payload(7, 10_000)));
        assert!(!blocks.match_hashes(&(0..3), &payload(8, 10_000)));
        assert!(!blocks.match_hashes(&(0..3), &payload(7, 9_999)));
    }

    #[test]
    fn long_images_have_longer_blocks_and_the_longest_none() {
        let length = |size, most| Blocks::new(size, most).map(|blocks| blocks.length());
        assert_eq!(length(1, 1 << 20), Some(64 << 10));
        assert_eq!(length(1 << 30, 5000), Some(4096));
        assert_eq!(length(1 << 38, 1 << 20), Some(1 << 18));
        assert_eq!(length(1 << 62, 1 << 20), None);
    }
}
