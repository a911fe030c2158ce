//! A copy in this process's memory.

use std::{collections::BTreeMap, fs, io};

use bytes::Bytes;
use nbd::Payload;

use super::Store;
use crate::units;

/// Memory is taken in pieces of this length, in bytes.
const PIECE: u64 = 1 << 20;

/// Pieces of memory, each taken when it is first written to.
pub(super) struct MemoryStore {
    pieces: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryStore {
    /// For `size` bytes, which half of the memory that is available now must hold.
    pub(super) fn open(size: u64) -> Result<Self, String> {
        let available = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| available_bytes(&text))
            .ok_or("can't tell how much memory there is: /proc/meminfo has no MemAvailable")?;
        if size > available / 2 {
            return Err(format!(
                "the image has {}, more than half of the memory that is available ({}); keep it in a directory",
                units::bytes(size),
                units::bytes(available)
            ));
        }
        Ok(Self {
            pieces: BTreeMap::new(),
        })
    }
}

impl Store for MemoryStore {
    fn write(&mut self, mut offset: u64, data: &Payload) -> io::Result<()> {
        for part in data.parts() {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let piece = self.pieces.entry(offset / PIECE).or_insert_with(new_piece);
                let room = &mut piece[to_usize(offset % PIECE)..];
                let (now, later) = rest.split_at(rest.len().min(room.len()));
                room[..now.len()].copy_from_slice(now);
                offset += now.len() as u64;
                rest = later;
            }
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, length: u32) -> io::Result<Payload> {
        let (mut offset, end) = (offset, offset + u64::from(length));
        let mut data = Vec::with_capacity(length as usize);
        while offset < end {
            let next = (offset / PIECE + 1) * PIECE;
            let piece = self.pieces.get(&(offset / PIECE));
            let piece = piece.ok_or(io::ErrorKind::UnexpectedEof)?;
            let start = to_usize(offset % PIECE);
            data.extend_from_slice(&piece[start..start + to_usize(next.min(end) - offset)]);
            offset = next;
        }
        Ok(Payload::from(Bytes::from(data)))
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn new_piece() -> Box<[u8]> {
    vec![0; to_usize(PIECE)].into_boxed_slice()
}

/// `MemAvailable` of proc(5), in bytes.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
