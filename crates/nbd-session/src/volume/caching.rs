//! The volume's side of the cache: what is asked for, for whom, and when.
//!
//! What the machine waits for is asked for at once and exactly. What it may want next is asked for after that, and only
//! as far as the link has room: see [`Session::room`](crate::Session::room).

use std::ops::Range;
use std::time::Instant;

use nbd::wire::Errno;
use nbd::{Command, Payload, Reply};

use super::Volume;
use super::cache::{Cache, Landed, Locality, Origin, Served, Streams};
use super::plan::pieces;
use crate::session::RequestId;

/// The shortest and the longest region that is asked for because of small reads, in bytes; ...
const REGIONS: (u64, u64) = (64 << 10, 128 << 10);
/// ... and which part of what the link carries in a round trip it may be.
const PART: u64 = 16;

/// A link that carries more, in bytes a second, brings at once what is asked for again.
const AT_ONCE: u64 = 100_000_000;

/// The memory of a read-only disk.
#[derive(Debug)]
pub(super) struct Caching {
    cache: Cache,
    streams: Streams,
    locality: Locality,
}

impl Caching {
    /// One of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            cache: Cache::new(limit),
            streams: Streams::default(),
            locality: Locality::new(),
        }
    }
}

impl Volume {
    /// Lets memory answer a part, now or when its bytes have come. False: the link is to be asked.
    pub(super) fn ask_cache(&mut self, now: Instant, part: RequestId, command: &Command) -> bool {
        let (Some(caching), &Command::Read { offset, length }) = (&mut self.caching, command)
        else {
            return false;
        };
        let range = offset..offset + u64::from(length);
        let in_a_row = caching.streams.read(&range);
        if let Some(found) = caching.cache.find(&range, in_a_row) {
            if found.near {
                caching.locality.hit();
            }
            self.collect(part, Ok(Reply::Data(found.data)));
            return true;
        }
        if self.ask_store(part, command) {
            return true;
        }
        let Some(caching) = &mut self.caching else {
            return false;
        };
        let gaps = caching.cache.wait(part, range.clone(), in_a_row);
        let is_near = !in_a_row && !gaps.is_empty();
        self.demand(now, part, gaps);
        if is_near {
            self.read_near(now, &range);
        }
        true
    }

    /// Asks for what a part waits for.
    fn demand(&mut self, now: Instant, part: RequestId, gaps: Vec<Range<u64>>) {
        for gap in gaps {
            self.load(now, &gap, Origin::Demand, Some(part));
        }
    }

    fn load(&mut self, now: Instant, range: &Range<u64>, origin: Origin, part: Option<RequestId>) {
        for (offset, length) in pieces(range.start, range.end, self.session.max_request()) {
            let request = self.number_part();
            if let Some(caching) = &mut self.caching {
                let range = offset..offset + u64::from(length);
                caching.cache.begin(request, &range, origin, part);
            }
            self.session.submit_streamed(now, request, offset, length);
        }
    }

    /// Asks for what streams will come by, as far as there is room.
    pub(super) fn read_ahead(&mut self, now: Instant) {
        while let Some(range) = self.next_ahead() {
            self.load(now, &range, Origin::Ahead, None);
        }
    }

    /// What is to be asked for ahead, once it fits.
    fn next_ahead(&mut self) -> Option<Range<u64>> {
        let caching = self.caching.as_mut()?;
        let streams = caching.streams.count() as u64;
        if streams == 0 {
            return None;
        }
        let room = self.session.room();
        if room == 0 {
            return None;
        }
        let end = self.geometry.as_ref()?.image_size;
        let longest = u64::from(self.session.max_request());
        let share = caching.cache.limit() / 2 / streams;
        let reach = share.min(2 * self.session.reach());
        loop {
            let window = caching.streams.next(longest, reach, end)?;
            let gap = caching.cache.gap(&window);
            match gap.filter(|gap| !is_stored(self.keep.as_ref(), gap)) {
                None => caching.streams.skip(&window, window.end),
                Some(gap) => {
                    let length = gap.end - gap.start;
                    let fits = length <= room && caching.cache.has_room(length);
                    if fits {
                        caching.streams.skip(&window, gap.end);
                    }
                    return fits.then_some(gap);
                }
            }
        }
    }

    /// Asks for what is near to a small read, if that is worth it and there is room.
    fn read_near(&mut self, now: Instant, range: &Range<u64>) {
        let (Some(caching), Some(geometry)) = (&mut self.caching, &self.geometry) else {
            return;
        };
        let length = (self.session.reach() / PART).clamp(REGIONS.0, REGIONS.1);
        let Some(region) = caching.locality.miss(range, 1 << length.ilog2()) else {
            return;
        };
        let mut rest = region.start..region.end.min(geometry.image_size);
        while let Some(caching) = &self.caching
            && let Some(gap) = caching.cache.gap(&rest)
        {
            let length = gap.end - gap.start;
            if length > self.session.room() || !caching.cache.has_room(length) {
                return;
            }
            rest.start = gap.end;
            if !is_stored(self.keep.as_ref(), &gap) {
                self.load(now, &gap, Origin::Near, None);
            }
        }
    }

    /// What the link carries decides what is worth keeping.
    pub(super) fn weigh_memory(&mut self) {
        if let Some(caching) = &mut self.caching {
            caching.cache.be_forgetful(self.session.rate() > AT_ONCE);
        }
    }

    /// Bytes have come.
    pub(super) fn take_arrived(&mut self, request: RequestId, offset: u64, data: &bytes::Bytes) {
        if let Some(caching) = &mut self.caching {
            let served = caching.cache.arrive(request, offset, data);
            self.serve(served);
        }
    }

    /// Whether the cache asked for this.
    pub(super) fn is_of_cache(&self, request: RequestId) -> bool {
        self.caching
            .as_ref()
            .is_some_and(|caching| caching.cache.is_loading(request))
    }

    /// What the cache asked for is here, or cannot be had.
    pub(super) fn take_segment(
        &mut self,
        now: Instant,
        request: RequestId,
        result: Result<Reply, Errno>,
    ) {
        let Some(caching) = &mut self.caching else {
            return;
        };
        let errno = result.as_ref().err().copied().unwrap_or(Errno::EIO);
        let data = result.and_then(|reply| match reply {
            Reply::Data(data) => Ok(data),
            _ => Err(Errno::EIO),
        });
        match caching.cache.land(request, data) {
            Some((Landed::Here { offset, data }, served)) => {
                if let Some(keep) = &mut self.keep {
                    self.answers.extend(keep.take(offset, &data));
                }
                self.serve(served);
            }
            Some((Landed::Failed { range, waiting }, _)) => {
                for part in waiting {
                    self.ask_again(now, part, &range, errno);
                }
            }
            None => {}
        }
    }

    /// More was asked for than `part` wanted, and failed: one bad spot must not take its surroundings with it.
    fn ask_again(&mut self, now: Instant, part: RequestId, failed: &Range<u64>, errno: Errno) {
        let Some(caching) = &mut self.caching else {
            return;
        };
        if !caching.cache.is_waiting(part) {
            return;
        }
        match caching.cache.narrow(part, failed) {
            Some(wanted) => {
                let gaps = caching.cache.cover(part, wanted);
                self.demand(now, part, gaps);
            }
            None => self.collect(part, Err(errno)),
        }
    }

    fn serve(&mut self, served: Vec<Served>) {
        for (part, data) in served {
            self.collect(part, Ok(Reply::Data(data)));
        }
    }

    /// The link is lost: the next one is not asked for what nobody waits for.
    pub(super) fn drop_ahead(&mut self) {
        let Some(caching) = &mut self.caching else {
            return;
        };
        for request in caching.cache.unwanted() {
            if self.session.cancel(request) {
                caching.cache.land(request, Err(Errno::EIO));
            }
        }
        caching.streams.start_over();
    }

    /// A request of the cache was taken back since the store has everything.
    pub(super) fn turn_to_store(&mut self, request: RequestId) {
        let landed = self
            .caching
            .as_mut()
            .and_then(|caching| caching.cache.land(request, Err::<Payload, _>(Errno::EIO)));
        let Some((Landed::Failed { waiting, .. }, _)) = landed else {
            return;
        };
        for part in waiting {
            let forget = |caching: &mut Caching| caching.cache.forget(part);
            if let Some(range) = self.caching.as_mut().and_then(forget) {
                let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
                let offset = range.start;
                self.ask_store(part, &Command::Read { offset, length });
            }
        }
    }
}

/// Whether the kept copy has it.
fn is_stored(keep: Option<&super::keep::Keep>, range: &Range<u64>) -> bool {
    let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
    keep.is_some_and(|keep| keep.covers(range.start, length))
}
