//! What was seen of the image, so that a later link's image can be compared with it.

use std::ops::Range;

use nbd::{Command, Payload};
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// The longest block at an edge of the image, in bytes.
const EDGE: u64 = 64 << 10;
/// The longest block of a read, unless the peer's blocks are longer, in bytes. A session that begins hashes one of nearly
/// every read; many short ones are better witnesses than a few long ones, and cost less.
const BLOCK: u64 = 16 << 10;
/// How many blocks of reads are remembered, besides the first and the last block of the image.
const REMEMBERED: usize = 64;
/// How many of them are compared.
const COMPARED: usize = 16;

/// A block of the image, and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) offset: u64,
    pub(super) length: u32,
    /// The halves of a hash of 128 bits, which JSON's readers don't take as one number.
    hash: [u64; 2],
}

impl Block {
    /// The request that reads it.
    pub(super) fn read(&self) -> Command {
        Command::Read {
            offset: self.offset,
            length: self.length,
        }
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

/// A random choice among all blocks that were read, of constant size, and the first and last block of the image.
#[derive(Debug)]
pub(super) struct Seen {
    key: u64,
    random: Random,
    edges: Vec<Block>,
    blocks: Vec<Block>,
    reads: u64,
    revision: u64,
}

/// What another process has to know to compare as this one would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SeenRecord {
    key: u64,
    edges: Vec<Block>,
    blocks: Vec<Block>,
    reads: u64,
}

impl Seen {
    /// Nothing yet; `seed` decides what is remembered, and is the key of the hashes.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            key: seed,
            random: Random(seed),
            edges: Vec::new(),
            blocks: Vec::new(),
            reads: 0,
            revision: 0,
        }
    }

    /// What another process saw of an image of `size` bytes; `seed` decides what else is remembered. What cannot be
    /// asked for with requests of `max_request` bytes is not compared.
    pub(super) fn restore(record: SeenRecord, seed: u64, size: u64, max_request: u32) -> Self {
        let SeenRecord {
            key,
            mut edges,
            mut blocks,
            reads,
        } = record;
        let can_be_read = |block: &Block| {
            let end = block.offset.checked_add(u64::from(block.length));
            (1..=max_request).contains(&block.length) && end.is_some_and(|end| end <= size)
        };
        edges.retain(can_be_read);
        blocks.retain(can_be_read);
        blocks.truncate(REMEMBERED);
        Self {
            key,
            edges,
            blocks,
            reads,
            ..Self::new(seed)
        }
    }

    /// All of it, for another process.
    pub(super) fn record_all(&self) -> SeenRecord {
        SeenRecord {
            key: self.key,
            edges: self.edges.clone(),
            blocks: self.blocks.clone(),
            reads: self.reads,
        }
    }

    /// Grows when a block was remembered.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Remembers the first or the last block of the image.
    pub(super) fn record_edge(&mut self, offset: u64, data: &Payload) {
        let block = self.hash(offset, data);
        self.edges.push(block);
        self.revision += 1;
    }

    /// Perhaps remembers a block of a read: each read has the same chance in the end. `minimum` is the length of the
    /// peer's blocks, in bytes.
    pub(super) fn record(&mut self, offset: u64, data: &Payload, minimum: u32) {
        self.reads += 1;
        let full = self.blocks.len() == REMEMBERED;
        let slot = if full {
            self.random.below(self.reads)
        } else {
            self.blocks.len()
        };
        if slot >= REMEMBERED {
            return;
        }
        self.revision += 1;
        let block = self.block_of(offset, data, BLOCK.max(minimum.into()));
        match self.blocks.get_mut(slot) {
            Some(old) => *old = block,
            None => self.blocks.push(block),
        }
    }

    /// Forgets what overlaps `range`, since it is being written.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        let keep = |block: &Block| !overlap(&block.range(), range);
        self.edges.retain(keep);
        self.blocks.retain(keep);
    }

    /// Which blocks to compare: the edges, and some of the others at random.
    pub(super) fn choose(&mut self) -> Vec<Block> {
        let mut chosen = self.edges.clone();
        let mut others: Vec<_> = self.blocks.iter().collect();
        while chosen.len() < self.edges.len() + COMPARED && !others.is_empty() {
            chosen.push(
                others
                    .swap_remove(self.random.below(others.len() as u64))
                    .clone(),
            );
        }
        chosen
    }

    /// Whether `data` is what `block` was.
    pub(super) fn matches(&self, block: &Block, data: &Payload) -> bool {
        self.hash(block.offset, data) == *block
    }

    /// A block at random out of a read, of at most so many bytes.
    fn block_of(&mut self, offset: u64, data: &Payload, most: u64) -> Block {
        let length = data.len() as u64;
        let start = most * self.random.below(length.div_ceil(most)) as u64;
        let end = length.min(start + most);
        let block = data.slice(usize_of(start)..usize_of(end));
        self.hash(offset + start, &block)
    }

    fn hash(&self, offset: u64, data: &Payload) -> Block {
        let mut hasher = SipHasher13::new_with_keys(self.key, self.key.rotate_left(32));
        for part in data.parts() {
            hasher.write(part);
        }
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let hash = hasher.finish128();
        Block {
            offset,
            length,
            hash: [hash.h1, hash.h2],
        }
    }
}

/// Where the first and the last block of an image are: ranges that a request of at most `max_request` bytes can read
/// with blocks of `minimum_block`.
pub(super) fn edges(size: u64, minimum_block: u32, max_request: u32) -> Vec<Range<u64>> {
    let minimum = u64::from(minimum_block.max(1));
    let block = EDGE.min(u64::from(max_request)) / minimum * minimum;
    let end = size / minimum * minimum;
    if block == 0 || end == 0 {
        return Vec::new();
    }
    let last = (end - 1) / block * block;
    let first = 0..block.min(end);
    if last == 0 {
        vec![first]
    } else {
        vec![first, last..end]
    }
}

/// Whether two ranges have a byte in common.
pub(super) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough for a fair choice.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize_of((z ^ (z >> 31)) % bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn payload(byte: u8, length: usize) -> Payload {
        Payload::from(Bytes::from(vec![byte; length]))
    }

    #[test]
    fn a_block_matches_itself_alone() {
        let mut seen = Seen::new(7);
        seen.record(4096, &payload(1, 1000), 1);
        let block = seen.choose().remove(0);
        assert_eq!((block.offset, block.length), (4096, 1000));
        assert!(seen.matches(&block, &payload(1, 1000)));
        assert!(!seen.matches(&block, &payload(2, 1000)));
        assert!(!seen.matches(&block, &payload(1, 999)));
    }

    #[test]
    fn memory_does_not_grow_with_what_is_read() {
        let mut seen = Seen::new(1);
        for read in 0..10_000 {
            seen.record(read * 512, &payload(0, 512), 1);
        }
        assert_eq!(seen.blocks.len(), REMEMBERED);
        let late = seen
            .blocks
            .iter()
            .filter(|block| block.offset >= 5_000 * 512)
            .count();
        assert!(
            (16..=48).contains(&late),
            "{late} of {REMEMBERED} blocks are of the second half"
        );
    }

    #[test]
    fn the_edges_and_a_few_others_are_compared() {
        let mut seen = Seen::new(1);
        seen.record_edge(0, &payload(1, 512));
        seen.record_edge(1 << 20, &payload(2, 100));
        for read in 1..100 {
            seen.record(read * 512, &payload(0, 512), 1);
        }
        let chosen = seen.choose();
        assert_eq!(chosen.len(), 2 + COMPARED);
        assert_eq!((chosen[0].offset, chosen[1].offset), (0, 1 << 20));
    }

    #[test]
    fn what_is_written_is_forgotten() {
        let mut seen = Seen::new(1);
        seen.record_edge(0, &payload(1, 512));
        seen.record(512, &payload(1, 512), 1);
        seen.forget(&(511..512));
        assert_eq!(
            seen.choose()
                .iter()
                .map(|block| block.offset)
                .collect::<Vec<_>>(),
            [512]
        );
        seen.forget(&(1023..2000));
        assert!(seen.choose().is_empty());
    }

    #[test]
    fn of_a_long_read_one_block_is_remembered() {
        for (minimum, most) in [(1, BLOCK), (512, BLOCK), (32 << 10, 32 << 10)] {
            let mut seen = Seen::new(3);
            seen.record(100, &payload(0, 10 << 16), minimum);
            let block = seen.choose().remove(0);
            assert_eq!((block.offset - 100) % most, 0);
            assert_eq!(u64::from(block.length), most);
        }
    }

    #[test]
    fn edges_keep_to_block_and_request_sizes() {
        let sole = |end| std::iter::once(0..end).collect::<Vec<_>>();
        assert_eq!(edges(1, 1, 4096), sole(1));
        assert_eq!(edges(65_536, 1, 1 << 20), sole(65_536));
        assert_eq!(edges(65_537, 1, 1 << 20), [0..65_536, 65_536..65_537]);
        assert_eq!(edges(10_000, 512, 5000), [0..4608, 9216..9728]);
        assert_eq!(edges(100, 512, 4096), []);
        assert_eq!(edges(1 << 30, 4096, 512), []);
    }
}
