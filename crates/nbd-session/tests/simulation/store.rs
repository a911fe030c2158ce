//! Images whose sectors say what was written to them, and when.

use crate::random::{Random, mix};

pub(crate) const SECTOR: usize = 512;

/// The content of one sector: which write made it. `ZEROES` and `ORIGINAL` are there from the beginning.
pub(crate) type Stamp = u32;
pub(crate) const ZEROES: Stamp = 0;
pub(crate) const ORIGINAL: Stamp = 1;
/// What another image has: another value of each byte, so that any byte that was seen tells the two apart.
pub(crate) const FOREIGN: Stamp = 2;

/// The bytes of a sector with this stamp.
pub(crate) fn content(stamp: Stamp, sector: usize) -> [u8; SECTOR] {
    if stamp == FOREIGN {
        return content(ORIGINAL, sector).map(|byte| !byte);
    }
    let mut bytes = [0; SECTOR];
    if stamp != ZEROES {
        let base = mix(u64::from(stamp) << 32 | sector as u64);
        for (at, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
            word.copy_from_slice(&base.wrapping_add(at).to_le_bytes());
        }
        bytes[..4].copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

/// The stamp of a sector's first bytes, which must be whole.
pub(crate) fn stamp_of(bytes: &[u8], sector: usize) -> Stamp {
    let stamp = Stamp::from_le_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(
        bytes,
        &content(stamp, sector)[..bytes.len()],
        "sector {sector} was torn on its way"
    );
    stamp
}

/// An image with a volatile cache: a crash forgets any of what was not flushed.
pub(crate) struct Store {
    stable: Vec<Stamp>,
    /// Stamps since the last flush, for each sector.
    cached: Vec<Vec<Stamp>>,
}

impl Store {
    pub(crate) fn new(size: u64, stamp: Stamp) -> Self {
        let sectors = usize::try_from(size).unwrap().div_ceil(SECTOR);
        Self {
            stable: vec![stamp; sectors],
            cached: vec![Vec::new(); sectors],
        }
    }

    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap();
        let mut bytes = Vec::with_capacity(length + SECTOR);
        for sector in start / SECTOR..(start + length).div_ceil(SECTOR) {
            bytes.extend_from_slice(&content(self.stamp(sector), sector));
        }
        bytes.drain(..start % SECTOR);
        bytes.truncate(length);
        bytes
    }

    pub(crate) fn write(&mut self, sector: usize, stamp: Stamp, stable: bool) {
        if stable {
            self.stable[sector] = stamp;
            self.cached[sector].clear();
        } else {
            self.cached[sector].push(stamp);
        }
    }

    pub(crate) fn flush(&mut self) {
        for (stable, cached) in self.stable.iter_mut().zip(&mut self.cached) {
            *stable = cached.last().copied().unwrap_or(*stable);
            cached.clear();
        }
    }

    /// Of each sector, any version since the last flush may be what is left.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        for (stable, cached) in self.stable.iter_mut().zip(&mut self.cached) {
            if let Some(kept) = random.below(cached.len() as u64 + 1).checked_sub(1) {
                *stable = cached[usize::try_from(kept).unwrap()];
            }
            cached.clear();
        }
    }

    fn stamp(&self, sector: usize) -> Stamp {
        self.cached[sector]
            .last()
            .copied()
            .unwrap_or(self.stable[sector])
    }
}
