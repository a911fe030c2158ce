//! Turns: where many sessions of a thread are busy at once, only so much of long requests is on its way to all of them.
//!
//! What is on its way goes through the memory of this machine, and the copies of it are much cheaper while it stays in
//! the processor's caches (`docs/performance.md`). So the sessions of a thread share a number of bytes. Each takes what
//! it can use, up to half of them, and who waits longest is next. Nothing is to be gained where a link is slow: one that
//! is too slow for its turns goes without them, so that neither it holds up the others nor they it.

use std::{
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use nbd_session::Volume;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What may be on its way to all sessions of a thread together, in bytes: not much more than a processor's own cache.
const TOGETHER: u32 = 4 << 20;
/// How long a turn may take: so turns never keep all sessions of a thread below `TOGETHER` in this time, 520 MB/s.
const TIME: Duration = Duration::from_millis(8);
/// How often in a row a link may be too slow for its turn by chance.
const FORGIVEN: u32 = 3;
/// How long one that is so more often goes without, and at most: twice as long each time.
const EXEMPTION: Duration = Duration::from_millis(100);
const LONGEST_EXEMPTION: Duration = Duration::from_secs(60);

/// What the sessions of a thread share.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    /// A permit for each byte.
    free: Arc<Semaphore>,
    /// How many there are.
    all: u32,
}

impl Turns {
    /// All of it free.
    #[cfg(any(test, feature = "serve"))]
    pub(crate) fn new() -> Self {
        Self::of(TOGETHER)
    }

    #[cfg(any(test, feature = "serve"))]
    pub(super) fn of(all: u32) -> Self {
        Self {
            free: Arc::new(Semaphore::new(all as usize)),
            all,
        }
    }

    /// So many bytes, if they are free: then nobody waits for them.
    fn try_take(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_many_owned(bytes).ok()
    }

    fn wait(&self, bytes: u32) -> Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>> {
        let next = Arc::clone(&self.free).acquire_many_owned(bytes);
        Box::pin(async move {
            match next.await {
                Ok(permit) => permit,
                // It is never closed.
                Err(_) => pending().await,
            }
        })
    }

    /// What one session may have of them. Two have long turns at a time, so that one has begun while the other ends.
    fn longest(&self) -> u32 {
        self.all / 2
    }

    /// Whether nobody but who holds `permit` has a turn or waits for one: then it may as well go on.
    fn is_alone(&self, permit: &OwnedSemaphorePermit) -> bool {
        self.free.available_permits() + permit.num_permits() == self.all as usize
    }
}

/// What a session says of its allowance, in bytes; see [`nbd_session::Session`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    /// What the first request takes that waits for an allowance.
    needs: Option<u64>,
    /// Whether any is on its way.
    uses: bool,
    /// What may still be asked for.
    left: u64,
}

impl Demand {
    pub(super) fn of(volume: &Volume) -> Self {
        Self {
            needs: volume.needs_allowance(),
            uses: volume.uses_allowance(),
            left: volume.allowance().unwrap_or_default(),
        }
    }

    /// Whether long requests are under way or wait.
    pub(super) fn is_any(&self) -> bool {
        self.uses || self.needs.is_some()
    }
}

/// A session's part in them.
pub(super) struct Turn {
    /// None: it has no part, and may send what it likes.
    turns: Option<Turns>,
    state: State,
    /// What it can use in one turn, as far as the last one showed, in bytes.
    usual: u64,
    /// How many of its turns in a row were too short for it.
    late: u32,
}

enum State {
    /// It asks for nothing.
    Idle,
    Waiting(Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>),
    Taken {
        permit: OwnedSemaphorePermit,
        until: Instant,
    },
    Exempt {
        until: Instant,
    },
}

impl Turn {
    /// Of a session that begins.
    pub(super) fn new(turns: Option<Turns>, now: Instant) -> Self {
        Self {
            turns,
            state: State::Exempt { until: now },
            usual: 0,
            late: 0,
        }
    }

    /// What the session is to be allowed from now on, if that changes: bytes, or None for whatever it likes.
    #[expect(clippy::option_option, reason = "a change, of what may be unbounded")]
    pub(super) fn proceed(&mut self, now: Instant, demand: Demand) -> Option<Option<u64>> {
        let turns = self.turns.as_ref()?;
        match &mut self.state {
            State::Taken { permit, until, .. }
                if demand.needs.is_some() && turns.is_alone(permit) =>
            {
                *until = now + TIME;
                return Some(Some(turns.all.into()));
            }
            State::Taken { permit, .. } if !demand.uses => {
                let given = permit.num_permits() as u64;
                self.usual = match demand.needs {
                    Some(_) => 2 * given,
                    None => given.saturating_sub(demand.left),
                };
                self.state = State::Idle;
                self.late = 0;
            }
            State::Taken { until, .. } if *until <= now => {
                self.late += 1;
                if self.late <= FORGIVEN {
                    self.state = State::Idle;
                } else {
                    let until = now + exemption(self.late - FORGIVEN);
                    self.state = State::Exempt { until };
                    return Some(None);
                }
            }
            State::Exempt { until } if *until <= now => {
                self.state = State::Idle;
                return Some(Some(0));
            }
            State::Idle if demand.needs.is_some() => {}
            _ => return None,
        }
        let Some(first) = demand.needs else {
            return Some(Some(0));
        };
        let wanted = first.max(self.usual);
        let longest = turns.longest();
        let wanted = u32::try_from(wanted).map_or(longest, |bytes| bytes.min(longest));
        match turns.try_take(wanted) {
            Some(permit) => Some(self.take(now, permit)),
            None => {
                self.state = State::Waiting(turns.wait(wanted));
                None
            }
        }
    }

    /// The turn that this session waits for, if it does. Nothing is lost where this is dropped.
    pub(super) async fn come(&mut self) -> OwnedSemaphorePermit {
        match &mut self.state {
            State::Waiting(turn) => turn.await,
            _ => pending().await,
        }
    }

    /// It is this session's turn; gives what it is allowed.
    pub(super) fn take(&mut self, now: Instant, permit: OwnedSemaphorePermit) -> Option<u64> {
        let allowed = permit.num_permits() as u64;
        self.state = State::Taken {
            permit,
            until: now + TIME,
        };
        Some(allowed)
    }

    /// When [`Self::proceed`] has something to say though nothing has happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.turns.as_ref()?;
        match self.state {
            State::Taken { until, .. } | State::Exempt { until } => Some(until),
            State::Idle | State::Waiting(_) => None,
        }
    }
}

/// How long a link goes without turns for the `nth` time.
fn exemption(nth: u32) -> Duration {
    let doubled = EXEMPTION.checked_mul(1 << nth.clamp(1, 31) >> 1);
    doubled.map_or(LONGEST_EXEMPTION, |time| time.min(LONGEST_EXEMPTION))
}

#[cfg(test)]
mod tests;
