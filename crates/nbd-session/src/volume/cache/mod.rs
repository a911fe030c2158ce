//! What of a read-only image is in memory, or on its way there, in segments: what was asked for at a time.
//!
//! A read waits for the segments that have its bytes, whoever had asked for them, and only for its own bytes of each:
//! they are handed out as they arrive. What was read once in a row is given up first, since nobody comes back for it, and
//! at once where the link would bring it again at once; then what was not read for the longest time. Bytes on their way
//! count, but are never given up.

mod locality;
mod ranks;
mod streams;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use foldhash::HashMap;
use nbd::Payload;
use nbd::wire::Errno;

use crate::session::RequestId;
pub(super) use locality::Locality;
use ranks::{Rank, Ranks};
pub(super) use streams::Streams;

/// What a segment takes besides its bytes.
const OVERHEAD: u64 = 256;
/// An answer that is a smaller part of a piece than this gets memory of its own: whoever is slow to take it would keep
/// the whole piece in memory.
const PINNED: usize = 8;
/// How much is kept of what nobody comes back for where it can be had again at once, in bytes: memory that is used again
/// soon is in the processor's caches.
const SPENT: u64 = 512 << 10;

/// Segments of one image.
#[derive(Debug)]
pub(super) struct Cache {
    /// How much it may hold, in bytes.
    limit: u64,
    bytes: u64,
    /// By their offsets; they don't overlap.
    segments: BTreeMap<u64, Segment>,
    /// What is on its way: offsets of segments.
    loading: HashMap<RequestId, u64>,
    waiters: HashMap<RequestId, Waiter>,
    ranks: Ranks,
    /// What is given up can be had again at once.
    is_forgetful: bool,
}

#[derive(Debug)]
struct Segment {
    length: u32,
    /// As much as has arrived.
    data: Payload,
    /// None while it is on its way.
    rank: Option<Rank>,
    origin: Origin,
    /// It was read to its end, in a row.
    is_spent: bool,
    /// Who waits for some of it.
    waiting: Vec<RequestId>,
}

/// Why a segment was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Somebody wanted exactly this.
    Demand,
    /// A stream comes by.
    Ahead,
    /// It is near to what was read.
    Near,
}

/// A part of a read that waits.
#[derive(Debug)]
struct Waiter {
    range: Range<u64>,
    in_a_row: bool,
    /// How many segments it waits for.
    missing: usize,
    /// What it has, by offset.
    pieces: BTreeMap<u64, Payload>,
}

/// A part that has all its bytes.
pub(super) type Served = (RequestId, Payload);

/// What is here of a range.
pub(super) struct Found {
    pub(super) data: Payload,
    /// Whether some of it was asked for because it is near to what was read.
    pub(super) near: bool,
}

/// A segment has landed.
pub(super) enum Landed {
    /// With its bytes.
    Here { offset: u64, data: Payload },
    /// Not at all: these wait in vain.
    Failed {
        range: Range<u64>,
        waiting: Vec<RequestId>,
    },
}

impl Cache {
    /// An empty one of at most `limit` bytes, besides what is being read.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: 0,
            segments: BTreeMap::new(),
            loading: HashMap::default(),
            waiters: HashMap::default(),
            ranks: Ranks::default(),
            is_forgetful: false,
        }
    }

    /// How much it may hold, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether what is given up can be had again at once.
    pub(super) fn be_forgetful(&mut self, is_forgetful: bool) {
        self.is_forgetful = is_forgetful;
    }

    /// All of `range`, if it is here. `in_a_row`: nobody will come back for what is read to its end.
    pub(super) fn find(&mut self, range: &Range<u64>, in_a_row: bool) -> Option<Found> {
        let mut data = Payload::new();
        let mut near = false;
        let mut at = range.start;
        while at < range.end {
            let (start, segment) = self.segments.range(..=at).next_back()?;
            let end = range.end.min(start + segment.data.len() as u64);
            if at >= end {
                return None;
            }
            append(&mut data, &segment.data, &(at - start..end - start));
            near |= segment.origin == Origin::Near;
            at = end;
        }
        self.touch(range, in_a_row);
        self.evict();
        Some(Found { data, near })
    }

    /// A part will wait for `range`, which is not here as a whole. Gives what has to be asked for: see
    /// [`Self::begin`]. `in_a_row` as for [`Self::find`].
    pub(super) fn wait(
        &mut self,
        part: RequestId,
        range: Range<u64>,
        in_a_row: bool,
    ) -> Vec<Range<u64>> {
        let waiter = Waiter {
            range: range.clone(),
            in_a_row,
            missing: 0,
            pieces: BTreeMap::new(),
        };
        self.waiters.insert(part, waiter);
        self.cover(part, range)
    }

    /// Lets a part that waits have what is here of `range`, and wait for what is on its way. Gives the gaps.
    pub(super) fn cover(&mut self, part: RequestId, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let before = self.segments.range_mut(..=at).next_back();
            match before.filter(|(start, segment)| at < **start + u64::from(segment.length)) {
                Some((start, segment)) => {
                    let end = range.end.min(start + u64::from(segment.length));
                    let wanted = at - start..end - start;
                    if let Some(waiter) = self.waiters.get_mut(&part) {
                        if wanted.end <= segment.data.len() as u64 {
                            let mut piece = Payload::new();
                            append(&mut piece, &segment.data, &wanted);
                            waiter.pieces.insert(at, piece);
                        } else {
                            waiter.missing += 1;
                            segment.waiting.push(part);
                        }
                    }
                    at = end;
                }
                None => {
                    let next = self.segments.range(at..).next();
                    let end = next.map_or(range.end, |(start, _)| range.end.min(*start));
                    gaps.push(at..end);
                    at = end;
                }
            }
        }
        gaps
    }

    /// `range`, where nothing is, was asked for; for a part that waits, or ahead of need.
    pub(super) fn begin(
        &mut self,
        request: RequestId,
        range: &Range<u64>,
        origin: Origin,
        part: Option<RequestId>,
    ) {
        let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        if let Some(waiter) = part.and_then(|part| self.waiters.get_mut(&part)) {
            waiter.missing += 1;
        }
        self.bytes += u64::from(length) + OVERHEAD;
        self.loading.insert(request, range.start);
        let segment = Segment {
            length,
            data: Payload::new(),
            rank: None,
            origin,
            is_spent: false,
            waiting: part.into_iter().collect(),
        };
        self.segments.insert(range.start, segment);
    }

    /// The first part of `range` that is neither here nor on its way.
    pub(super) fn gap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            let before = self.segments.range(..=at).next_back();
            let covered = before.map_or(0, |(start, segment)| start + u64::from(segment.length));
            if covered <= at {
                let next = self.segments.range(at..).next();
                return Some(at..next.map_or(range.end, |(start, _)| range.end.min(*start)));
            }
            at = covered;
        }
        None
    }

    /// Whether there is room for so many bytes more, beside what is on its way, without giving up what is still of use
    /// sooner than half of everything.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let ahead: u64 = self
            .loading
            .values()
            .filter_map(|start| self.segments.get(start))
            .map(|segment| u64::from(segment.length) + OVERHEAD)
            .sum();
        ahead + bytes <= self.limit / 2
    }

    /// Whether `request` is for a segment.
    pub(super) fn is_loading(&self, request: RequestId) -> bool {
        self.loading.contains_key(&request)
    }

    /// Bytes of a segment have arrived, in order. Gives the parts that have all their bytes now.
    pub(super) fn arrive(&mut self, request: RequestId, offset: u64, data: &Bytes) -> Vec<Served> {
        let Some(start) = self.loading.get(&request).copied() else {
            return Vec::new();
        };
        let Some(segment) = self.segments.get_mut(&start) else {
            return Vec::new();
        };
        // After a loss they begin again, and are the same.
        let here = start + segment.data.len() as u64;
        let known = usize::try_from(here.saturating_sub(offset)).unwrap_or(usize::MAX);
        if offset > here || known >= data.len() {
            return Vec::new();
        }
        segment.data.push(data.slice(known..));
        self.hand_out(start)
    }

    /// A segment was answered. Gives what came of it, and the parts that have all their bytes now.
    pub(super) fn land(
        &mut self,
        request: RequestId,
        result: Result<Payload, Errno>,
    ) -> Option<(Landed, Vec<Served>)> {
        let start = self.loading.remove(&request)?;
        let segment = self.segments.get_mut(&start)?;
        let length = segment.length;
        match result {
            Ok(data) if data.len() == length as usize => {
                if segment.data.len() < data.len() {
                    segment.data = data;
                }
                let data = segment.data.clone();
                let served = self.hand_out(start);
                let segment = self.segments.get_mut(&start)?;
                segment.rank = Some(self.ranks.insert(start, length, !segment.is_spent));
                self.evict();
                let offset = start;
                Some((Landed::Here { offset, data }, served))
            }
            _ => {
                self.bytes -= u64::from(length) + OVERHEAD;
                let waiting = self.segments.remove(&start)?.waiting;
                let range = start..start + u64::from(length);
                Some((Landed::Failed { range, waiting }, Vec::new()))
            }
        }
    }

    /// What `part` wants of `range`, which failed, if that is less than all; otherwise the part is forgotten.
    pub(super) fn narrow(&mut self, part: RequestId, range: &Range<u64>) -> Option<Range<u64>> {
        let waiter = self.waiters.get_mut(&part)?;
        let wanted = waiter.range.start.max(range.start)..waiter.range.end.min(range.end);
        if wanted == *range {
            self.waiters.remove(&part);
            return None;
        }
        waiter.missing -= 1;
        Some(wanted)
    }

    /// Whether `part` waits.
    pub(super) fn is_waiting(&self, part: RequestId) -> bool {
        self.waiters.contains_key(&part)
    }

    /// A part that waits is answered otherwise; what is on its way for it stays so.
    pub(super) fn forget(&mut self, part: RequestId) -> Option<Range<u64>> {
        self.waiters.remove(&part).map(|waiter| waiter.range)
    }

    /// Requests that nobody waits for.
    pub(super) fn unwanted(&self) -> Vec<RequestId> {
        let is_unwanted = |start: &u64| {
            self.segments
                .get(start)
                .is_some_and(|segment| segment.waiting.is_empty())
        };
        let unwanted = self.loading.iter().filter(|(_, start)| is_unwanted(start));
        let mut unwanted: Vec<_> = unwanted.map(|(request, _)| *request).collect();
        unwanted.sort_unstable();
        unwanted
    }

    /// Serves those whose bytes of the segment at `start` are all here.
    fn hand_out(&mut self, start: u64) -> Vec<Served> {
        let mut served = Vec::new();
        let Some(segment) = self.segments.get_mut(&start) else {
            return served;
        };
        let here = start + segment.data.len() as u64;
        let end = start + u64::from(segment.length);
        let (data, waiters) = (&segment.data, &mut self.waiters);
        segment.waiting.retain(|part| {
            let Some(waiter) = waiters.get_mut(part) else {
                return false;
            };
            let wanted = waiter.range.start.max(start)..waiter.range.end.min(end);
            if wanted.end > here {
                return true;
            }
            segment.is_spent |= waiter.in_a_row && wanted.end == end;
            let mut piece = Payload::new();
            append(
                &mut piece,
                data,
                &(wanted.start - start..wanted.end - start),
            );
            waiter.missing -= 1;
            let is_all = waiter.missing == 0;
            // Most wait for one segment alone.
            if is_all && waiter.pieces.is_empty() {
                waiters.remove(part);
                served.push((*part, piece));
                return false;
            }
            waiter.pieces.insert(wanted.start, piece);
            if is_all && let Some(waiter) = waiters.remove(part) {
                let parts = waiter.pieces.into_values().flatten();
                served.push((*part, parts.collect()));
            }
            false
        });
        served
    }

    /// What is here of `range` was used.
    fn touch(&mut self, range: &Range<u64>, in_a_row: bool) {
        let mut at = range.start;
        while at < range.end
            && let Some((start, segment)) = self.segments.range_mut(..=at).next_back()
        {
            let end = start + u64::from(segment.length);
            if let Some(rank) = &mut segment.rank {
                self.ranks.remove(*rank, segment.length);
                let is_of_use = !in_a_row || end > range.end;
                *rank = self.ranks.insert(*start, segment.length, is_of_use);
            }
            at = end.max(at + 1);
        }
    }

    fn evict(&mut self) {
        while let Some((rank, start)) = self.ranks.first()
            && (self.bytes > self.limit || self.is_forgetful && self.ranks.spent() > SPENT)
            && let Some(segment) = self.segments.remove(&start)
        {
            self.ranks.remove(rank, segment.length);
            self.bytes -= u64::from(segment.length) + OVERHEAD;
        }
    }
}

/// Appends `range` of `data` to `wanted`.
fn append(wanted: &mut Payload, data: &Payload, range: &Range<u64>) {
    let mut at = 0;
    for piece in data.parts() {
        let length = piece.len();
        let start = clamp(range.start, at, length);
        let end = clamp(range.end, at, length);
        if start < end {
            wanted.push(if end - start < length / PINNED {
                Bytes::copy_from_slice(&piece[start..end])
            } else {
                piece.slice(start..end)
            });
        }
        at += length as u64;
    }
}

/// Where `place` is in a piece of `length` bytes at `at`.
fn clamp(place: u64, at: u64, length: usize) -> usize {
    usize::try_from(place.saturating_sub(at))
        .unwrap_or(usize::MAX)
        .min(length)
}

#[cfg(test)]
mod tests;
