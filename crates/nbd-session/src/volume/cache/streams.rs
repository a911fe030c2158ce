//! Who reads in a row, and what to ask for ahead of them.
//!
//! A read that goes on where another ended belongs to its stream. How far ahead a stream is read grows as it is read,
//! so that whoever stops early has wasted little, up to what the link carries in a round trip: further ahead gains
//! nothing.

use std::collections::VecDeque;
use std::ops::Range;

/// Streams that are told apart.
const STREAMS: usize = 16;
/// A stream has so many reads at least, ...
const READS: u32 = 2;
/// ... and is so long, in bytes; or it has one read more.
const LENGTH: u64 = 64 << 10;
/// A reader may skip so much, or read it again or in another order, in bytes.
const TOLERANCE: u64 = 512 << 10;
/// The least that is asked for ahead at a time, and the first step ahead unless more was read in a row, in bytes.
const STEP: u64 = 128 << 10;
/// The most that is asked for ahead at a time, in bytes: a window. Windows lie at multiples of their length.
const WINDOW: u64 = 1 << 20;

/// The latest streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The latest at the front.
    streams: VecDeque<Stream>,
    /// How many of these have reads enough.
    count: usize,
}

#[derive(Debug)]
struct Stream {
    /// Where it goes on.
    next: u64,
    /// How much was read in a row, in bytes, in how many reads.
    length: u64,
    reads: u32,
    /// Up to where it was asked ahead.
    asked: u64,
    /// How far it is to be.
    distance: u64,
    /// Where that will be doubled.
    doubles_at: u64,
}

impl Streams {
    /// The machine reads `range`. Gives whether it reads in a row.
    pub(crate) fn read(&mut self, range: &Range<u64>) -> bool {
        let found = self.streams.iter().position(|one| one.has(range));
        let mut stream = match found.and_then(|place| self.streams.remove(place)) {
            Some(stream) => stream,
            None => Stream::new(range.start),
        };
        stream.advance(range);
        let is_one = stream.is_one();
        self.streams.push_front(stream);
        self.streams.truncate(STREAMS);
        self.count = self.streams.iter().filter(|one| one.is_one()).count();
        is_one
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// What to ask for next: of a window at most `longest`, no further ahead than `reach`, and before `end`. All in
    /// bytes. To be followed by [`Self::skip`].
    pub(crate) fn next(&self, longest: u64, reach: u64, end: u64) -> Option<Range<u64>> {
        self.streams
            .iter()
            .find_map(|one| one.ahead(longest, reach, end))
    }

    /// What [`Self::next`] gave is asked for, or here, up to `end`.
    pub(crate) fn skip(&mut self, range: &Range<u64>, end: u64) {
        let asked = |one: &&mut Stream| one.is_one() && one.from() == range.start;
        if let Some(stream) = self.streams.iter_mut().find(asked) {
            stream.asked = end;
        }
    }

    /// What was asked for ahead may be gone.
    pub(crate) fn start_over(&mut self) {
        self.streams.iter_mut().for_each(|one| one.asked = 0);
    }
}

impl Stream {
    fn new(start: u64) -> Self {
        Self {
            next: start,
            length: 0,
            reads: 0,
            asked: 0,
            distance: 0,
            doubles_at: 0,
        }
    }

    /// Whether `range` goes on with it, or comes late.
    fn has(&self, range: &Range<u64>) -> bool {
        let tolerance = if self.is_one() { TOLERANCE } else { 0 };
        range.start <= self.next + tolerance && range.end + tolerance > self.next
    }

    fn is_one(&self) -> bool {
        self.reads >= READS && self.length >= LENGTH || self.reads > READS
    }

    fn advance(&mut self, range: &Range<u64>) {
        if range.end <= self.next {
            return;
        }
        self.length += range.end - self.next.max(range.start);
        self.next = range.end;
        self.reads = self.reads.saturating_add(1);
        if self.is_one() && self.next >= self.doubles_at {
            self.distance = (2 * self.distance).max(STEP).max(self.length);
            self.doubles_at = self.next + self.distance / 2;
        }
    }

    /// From where it is to be asked for.
    fn from(&self) -> u64 {
        self.asked.max(self.next)
    }

    fn ahead(&self, longest: u64, reach: u64, end: u64) -> Option<Range<u64>> {
        let distance = self.distance.min(reach);
        let target = (self.next + distance).min(end);
        let from = self.from();
        if !self.is_one() || from >= target {
            return None;
        }
        // A few requests for the whole distance, so that one is always on its way.
        let step = (distance / 4).clamp(STEP.min(longest), WINDOW.min(longest).max(1));
        let step = 1 << step.ilog2();
        let border = (from / step + 1) * step;
        (border.min(end) <= target).then(|| from..border.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn read(streams: &mut Streams, start: u64, length: u64) -> bool {
        streams.read(&(start..start + length))
    }

    /// Asks for everything that is to be asked for.
    fn ask(streams: &mut Streams, reach: u64) -> Vec<Range<u64>> {
        let next = || {
            let range = streams.next(4 * MIB, reach, 1 << 40)?;
            streams.skip(&range, range.end);
            Some(range)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn one_read_is_no_stream_and_neither_are_scattered_ones() {
        let mut streams = Streams::default();
        for at in [0, 10, 3, 7, 100, 5] {
            assert!(!read(&mut streams, at * MIB, 64 * KIB));
        }
        assert!(ask(&mut streams, 16 * MIB).is_empty());
    }

    #[test]
    fn the_distance_grows_while_the_stream_goes_on_up_to_the_reach() {
        let mut streams = Streams::default();
        let mut ahead = Vec::new();
        for at in 0..100 {
            read(&mut streams, at * 128 * KIB, 128 * KIB);
            let asked = ask(&mut streams, 2 * MIB);
            assert!(asked.iter().all(|range| range.end - range.start <= MIB));
            ahead.extend(asked);
        }
        let joined = ahead.windows(2).all(|pair| pair[0].end == pair[1].start);
        assert!(joined, "{ahead:?}");
        assert_eq!(ahead[0], 256 * KIB..384 * KIB);
        let last = ahead.last().unwrap().end;
        assert!((13 * MIB..=15 * MIB).contains(&last), "{last}");
    }

    #[test]
    fn who_stops_early_has_wasted_little() {
        let mut streams = Streams::default();
        let mut wasted = 0;
        for at in 0..3 {
            read(&mut streams, at * 4 * KIB, 4 * KIB);
            let asked = ask(&mut streams, 16 * MIB);
            wasted += asked
                .iter()
                .map(|range| range.end - range.start)
                .sum::<u64>();
        }
        assert!((1..=STEP).contains(&wasted), "{wasted}");
    }

    #[test]
    fn several_streams_are_told_apart_and_reads_may_overtake_each_other() {
        let mut streams = Streams::default();
        for at in 0..20 {
            // Pairs in the wrong order.
            let at = at ^ 1;
            read(&mut streams, at * 64 * KIB, 64 * KIB);
            read(&mut streams, 1 << 30 | (at * 64 * KIB), 64 * KIB);
        }
        let asked = ask(&mut streams, MIB);
        assert!(asked.iter().any(|range| range.start < 1 << 30));
        assert!(asked.iter().any(|range| range.start > 1 << 30));
        assert!(streams.count() <= 4, "{streams:?}");
    }

    #[test]
    fn nothing_is_asked_beyond_the_end() {
        let mut streams = Streams::default();
        for at in 0..4 {
            read(&mut streams, at * MIB, MIB);
        }
        let end = 4 * MIB + 1000;
        assert_eq!(streams.next(4 * MIB, MIB, end), Some(4 * MIB..end));
        streams.skip(&(4 * MIB..end), end);
        assert_eq!(streams.next(4 * MIB, MIB, end), None);
    }
}
