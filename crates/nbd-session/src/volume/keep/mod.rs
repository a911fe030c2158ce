//! A copy of the image, made in idle moments, so that the one who serves it may go.
//!
//! What the machine reads is kept as well. Blocks that are stored serve reads at once; when all of them are, they are
//! read back and compared with the hashes of what was received.

mod blocks;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use nbd::Payload;
use nbd::wire::Errno;

use crate::control::KeepState;
use crate::session::{Output, RequestId, StoreAction, StoreId};
use blocks::Blocks;

/// The most that is asked for at a time, in bytes.
const WINDOW: u64 = 1 << 20;
/// What is asked for should take about this long: the machine may have to wait for it.
const BRISK: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_millis(200);
/// How long the machine must have asked for nothing.
const QUIET: Duration = Duration::from_millis(20);
/// How long to wait after a failure; each further one doubles it, ...
const RETRY: Duration = Duration::from_secs(10);
/// ... up to so many times.
const DOUBLINGS: u32 = 6;
/// With this much on its way to the store nothing more is taken, in bytes.
const MAX_WRITING: u64 = 16 << 20;
/// How often progress is told.
const REPORT: Duration = Duration::from_secs(1);

/// The copy, as far as it is.
#[derive(Debug)]
pub(super) struct Keep {
    blocks: Blocks,
    stage: Stage,
    tasks: BTreeMap<StoreId, Task>,
    next_task: u64,
    /// How many tasks are reads of the machine.
    reading: usize,
    /// How much is on its way to the store, in bytes.
    writing: u64,
    fetch: Option<Fetch>,
    /// When the machine should have been quiet for long enough.
    quiet_at: Instant,
    /// When the next fetch keeps the pace.
    next_fetch: Instant,
    cursor: usize,
    window: u64,
    most: u64,
    failures: u32,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Copying,
    /// Everything is stored, and is being read back.
    Verifying,
    Whole,
}

/// What the store was told to do.
#[derive(Debug)]
enum Task {
    Write(Range<usize>),
    Read(Part),
    Sync,
    Verify(Range<usize>),
}

/// A part of a read of the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) id: RequestId,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// What is asked of the link for the copy.
#[derive(Debug)]
struct Fetch {
    request: RequestId,
    offset: u64,
    started: Instant,
    /// What of it is still being stored.
    storing: Option<StoreId>,
}

/// What follows from the end of a task.
#[derive(Debug)]
pub(super) enum Stored {
    Nothing,
    /// A read of the machine is answered.
    Read(RequestId, Payload),
    /// The copy is whole and verified.
    Whole,
    /// The store is of no use any more; with the reason.
    Lost(String),
}

impl Keep {
    /// An empty copy of an image of `size` bytes, of which `max_request` may be asked for at a time; `None` where it
    /// is too large.
    pub(super) fn new(now: Instant, size: u64, max_request: u32) -> Option<Self> {
        let most = WINDOW.min(u64::from(max_request));
        let blocks = Blocks::new(size, most)?;
        Some(Self {
            window: blocks.length(),
            blocks,
            stage: Stage::Copying,
            tasks: BTreeMap::new(),
            next_task: 0,
            reading: 0,
            writing: 0,
            fetch: None,
            quiet_at: now,
            next_fetch: now,
            cursor: 0,
            most,
            failures: 0,
            progress: Progress::new(now),
        })
    }

    /// Whether no link is needed any more.
    pub(super) fn is_whole(&self) -> bool {
        self.stage == Stage::Whole
    }

    /// Whether all of these bytes are stored.
    pub(super) fn covers(&self, offset: u64, length: u32) -> bool {
        self.blocks.cover(&(offset..offset + u64::from(length)))
    }

    /// How many reads of the machine the store is to answer.
    pub(super) fn reading(&self) -> usize {
        self.reading
    }

    /// The reads that the store has not answered.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = Part> {
        self.tasks.values().filter_map(|task| match task {
            Task::Read(part) => Some(*part),
            _ => None,
        })
    }

    /// Reads what is stored, for the machine.
    pub(super) fn read(&mut self, part: Part) -> Output {
        self.reading += 1;
        let Part { offset, length, .. } = part;
        self.begin(Task::Read(part), StoreAction::Read { offset, length })
    }

    /// The machine asked the link for something, or is being answered.
    pub(super) fn disturb(&mut self, now: Instant) {
        self.quiet_at = now + QUIET;
    }

    /// When [`Self::next_fetch`] may have something, while the link lives and the machine waits for nothing.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let may = self.fetch.is_none() && self.writing < MAX_WRITING && self.blocks.has_absent();
        may.then(|| self.next_fetch.max(self.quiet_at))
    }

    /// Takes what is to be asked for next, if it is time: offset and length in bytes.
    pub(super) fn next_fetch(&mut self, now: Instant, request: RequestId) -> Option<(u64, u32)> {
        self.poll_timeout().filter(|at| *at <= now)?;
        let blocks = self.blocks.next_absent(self.cursor, self.window)?;
        let bytes = self.blocks.bytes(&blocks);
        self.cursor = blocks.end;
        self.fetch = Some(Fetch {
            request,
            offset: bytes.start,
            started: now,
            storing: None,
        });
        let length = u32::try_from(bytes.end - bytes.start).ok()?;
        Some((bytes.start, length))
    }

    /// Whether a request of the session is [`Self::next_fetch`]'s.
    pub(super) fn is_fetch(&self, request: RequestId) -> bool {
        self.fetch
            .as_ref()
            .is_some_and(|fetch| fetch.request == request)
    }

    /// What was asked for is there, or cannot be had.
    pub(super) fn fetched(&mut self, result: Result<Payload, Errno>) -> Vec<Output> {
        let Some(mut fetch) = self.fetch.take() else {
            return Vec::new();
        };
        let Ok(data) = result else {
            let pause = RETRY * 2_u32.pow(self.failures.min(DOUBLINGS));
            self.failures += 1;
            self.next_fetch = fetch.started + pause;
            return Vec::new();
        };
        self.failures = 0;
        let outputs = self.take(fetch.offset, &data);
        fetch.storing = self
            .tasks
            .last_key_value()
            .map(|(task, _)| *task)
            .filter(|_| !outputs.is_empty());
        self.fetch = fetch.storing.is_some().then_some(fetch);
        outputs
    }

    /// Stores what was read of the image: the blocks that are whole in it, and new.
    pub(super) fn take(&mut self, offset: u64, data: &Payload) -> Vec<Output> {
        if self.writing >= MAX_WRITING {
            return Vec::new();
        }
        let runs = self.blocks.absent_within(offset, data);
        runs.into_iter()
            .map(|blocks| self.store(offset, data, blocks))
            .collect()
    }

    fn store(&mut self, offset: u64, data: &Payload, blocks: Range<usize>) -> Output {
        let bytes = self.blocks.bytes(&blocks);
        let at = |place: u64| usize::try_from(place - offset).unwrap_or(usize::MAX);
        let data = data.slice(at(bytes.start)..at(bytes.end));
        self.blocks.begin(&blocks, &data);
        self.writing += data.len() as u64;
        let offset = bytes.start;
        self.begin(Task::Write(blocks), StoreAction::Write { offset, data })
    }

    /// The store has done a task.
    pub(super) fn handle_stored(
        &mut self,
        now: Instant,
        task: StoreId,
        result: Result<Payload, String>,
        outputs: &mut impl Extend<Output>,
    ) -> Stored {
        let Some(done) = self.tasks.remove(&task) else {
            return Stored::Nothing;
        };
        self.reading -= usize::from(matches!(done, Task::Read(_)));
        match (done, result) {
            (Task::Read(part), Ok(data)) if data.len() == part.length as usize => {
                Stored::Read(part.id, data)
            }
            (Task::Read(part), result) => {
                // The caller finds it among the unanswered ones.
                self.tasks.insert(task, Task::Read(part));
                Stored::Lost(result.err().unwrap_or_else(|| "it gave too little".into()))
            }
            (_, Err(cause)) => Stored::Lost(cause),
            (Task::Write(blocks), Ok(_)) => {
                self.finish_write(now, task, &blocks);
                if self.blocks.is_complete() {
                    self.stage = Stage::Verifying;
                    outputs.extend([self.begin(Task::Sync, StoreAction::Sync)]);
                }
                Stored::Nothing
            }
            (Task::Sync, Ok(_)) => {
                outputs.extend(self.verify(0));
                Stored::Nothing
            }
            (Task::Verify(blocks), Ok(data)) if self.blocks.match_hashes(&blocks, &data) => {
                match self.verify(blocks.end) {
                    Some(next) => {
                        outputs.extend([next]);
                        Stored::Nothing
                    }
                    None => {
                        self.stage = Stage::Whole;
                        Stored::Whole
                    }
                }
            }
            (Task::Verify(_), Ok(_)) => {
                Stored::Lost("it gave other bytes than were stored in it".into())
            }
        }
    }

    /// How far it is, when that is to be told.
    pub(super) fn report(&mut self, now: Instant) -> Option<KeepState> {
        let (bytes, size) = (self.blocks.present(), self.blocks.size());
        let seconds_left = self.progress.seconds_left(now, bytes, size);
        let due = self.is_whole() || self.progress.is_due(now);
        due.then(|| {
            self.progress.told = Some(now);
            KeepState {
                bytes,
                size,
                whole: self.is_whole(),
                seconds_left: seconds_left.filter(|_| !self.is_whole()),
                problem: None,
            }
        })
    }

    /// A block is stored. Where that was the end of a fetch, the next begins after a pause as long as this one took,
    /// and is longer or shorter, so that the machine need not wait long for it.
    fn finish_write(&mut self, now: Instant, task: StoreId, blocks: &Range<usize>) {
        let bytes = self.blocks.bytes(blocks);
        self.writing -= bytes.end - bytes.start;
        self.blocks.finish(blocks);
        let of_fetch = |fetch: &mut Fetch| fetch.storing == Some(task);
        let Some(fetch) = self.fetch.take_if(of_fetch) else {
            return;
        };
        let took = now.saturating_duration_since(fetch.started);
        self.next_fetch = now + took;
        if took < BRISK {
            self.window = (2 * self.window).min(self.most);
        } else if took > SLOW {
            self.window = (self.window / 2).max(self.blocks.length());
        }
    }

    /// Reads some blocks back; `None` behind the last one.
    fn verify(&mut self, start: usize) -> Option<Output> {
        let blocks = self.blocks.following(start, self.most);
        let bytes = self.blocks.bytes(&blocks);
        let length = u32::try_from(bytes.end - bytes.start).ok()?;
        (length > 0).then(|| {
            let offset = bytes.start;
            self.begin(Task::Verify(blocks), StoreAction::Read { offset, length })
        })
    }

    fn begin(&mut self, task: Task, action: StoreAction) -> Output {
        let id = StoreId(self.next_task);
        self.next_task += 1;
        self.tasks.insert(id, task);
        Output::Store { task: id, action }
    }
}

/// How fast the copy grows.
#[derive(Debug)]
struct Progress {
    told: Option<Instant>,
    measured: Instant,
    bytes: u64,
    /// Bytes in a second, smoothed.
    rate: Option<u64>,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self {
            told: None,
            measured: now,
            bytes: 0,
            rate: None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.told.is_none_or(|told| told + REPORT <= now)
    }

    fn seconds_left(&mut self, now: Instant, bytes: u64, size: u64) -> Option<u64> {
        let passed = now.saturating_duration_since(self.measured);
        if passed >= REPORT {
            let milliseconds = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
            let rate = (bytes - self.bytes).saturating_mul(1000) / milliseconds;
            let smooth = |old: u64| old / 4 * 3 + rate / 4;
            self.rate = Some(self.rate.map_or(rate, smooth));
            (self.measured, self.bytes) = (now, bytes);
        }
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some((size - bytes).div_ceil(rate))
    }
}
