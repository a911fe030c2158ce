//! Turns: where many sessions are busy at once, a few of them at a time have long requests on their way.
//!
//! What is on its way to all sessions together goes through the memory of this machine, and the copies of it are
//! cheaper while it stays in the processor's caches (`docs/performance.md`). So a few sessions at a time may ask for a
//! little each, and who waits longest is next. Nothing is to be gained where a link is slow: one that is too slow for
//! its turns goes without them, so that neither it holds up the others nor they it.

use std::{
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many sessions have a turn at once.
const AT_ONCE: usize = 4;
/// What one turn is for, in bytes; less, and changing from one session to the next costs more than is saved.
const ALLOWANCE: u64 = 1 << 20;
/// The longest turn: so turns never keep all sessions together below `AT_ONCE * ALLOWANCE` in this time, 1 GB/s.
const LONGEST: Duration = Duration::from_millis(4);
/// How often in a row a link may be too slow for its turn by chance.
const FORGIVEN: u32 = 3;
/// How long one that is so more often goes without, and at most: twice as long each time.
const EXEMPTION: Duration = Duration::from_millis(100);
const LONGEST_EXEMPTION: Duration = Duration::from_secs(60);

/// The turns that all sessions of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    /// All of them free.
    #[cfg(any(test, feature = "serve"))]
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// A turn, if one is free: then nobody waits for it.
    fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    fn wait(&self) -> Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>> {
        let next = Arc::clone(&self.0).acquire_owned();
        Box::pin(async move {
            match next.await {
                Ok(permit) => permit,
                // It is never closed.
                Err(_) => pending().await,
            }
        })
    }

    /// Whether at most one session has a turn: then it may as well go on.
    fn is_at_most_one_taken(&self) -> bool {
        self.0.available_permits() + 1 >= AT_ONCE
    }
}

/// A session's part in them.
pub(super) struct Turn {
    /// None: it has no part, and may send what it likes.
    turns: Option<Turns>,
    state: State,
    /// How many of its turns in a row were too short for it.
    late: u32,
}

enum State {
    /// It asks for nothing.
    Idle,
    Waiting(Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>),
    Taken {
        _permit: OwnedSemaphorePermit,
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
            late: 0,
        }
    }

    /// What the session is to be allowed from now on, if that changes: bytes, or None for whatever it likes. It `needs`
    /// an allowance, or `uses` what it was allowed, as [`nbd_session::Session`] says.
    #[expect(clippy::option_option, reason = "a change, of what may be unbounded")]
    pub(super) fn proceed(&mut self, now: Instant, needs: bool, uses: bool) -> Option<Option<u64>> {
        let turns = self.turns.as_ref()?;
        match &mut self.state {
            State::Taken { until, .. } if needs && turns.is_at_most_one_taken() => {
                *until = now + LONGEST;
                return Some(Some(ALLOWANCE));
            }
            State::Taken { .. } if !uses => {
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
            State::Idle if needs => {}
            _ => return None,
        }
        if !needs {
            return Some(Some(0));
        }
        match turns.try_take() {
            Some(permit) => Some(self.take(now, permit)),
            None => {
                self.state = State::Waiting(turns.wait());
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
        self.state = State::Taken {
            _permit: permit,
            until: now + LONGEST,
        };
        Some(ALLOWANCE)
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
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// A session of these turns that has just begun.
    fn begin(turns: &Turns, now: Instant) -> Turn {
        let mut turn = Turn::new(Some(turns.clone()), now);
        assert_eq!(turn.proceed(now, false, false), Some(Some(0)));
        turn
    }

    /// Sessions that have all turns, and another that waits for one.
    async fn crowd(turns: &Turns, now: Instant) -> (Vec<Turn>, Turn) {
        let mut busy: Vec<_> = (0..AT_ONCE).map(|_| begin(turns, now)).collect();
        for turn in &mut busy {
            assert_eq!(turn.proceed(now, true, false), Some(Some(ALLOWANCE)));
        }
        let mut late = begin(turns, now);
        assert_eq!(late.proceed(now, true, false), None);
        assert!(timeout(Duration::ZERO, late.come()).await.is_err());
        (busy, late)
    }

    /// Uses a turn up and gets nothing back in time; gives when that was.
    fn be_late(turn: &mut Turn, now: Instant) -> Instant {
        assert_eq!(turn.proceed(now, true, false), Some(Some(ALLOWANCE)));
        assert_eq!(turn.deadline(), Some(now + LONGEST));
        now + LONGEST
    }

    #[tokio::test]
    async fn who_has_no_turn_gets_that_of_the_first_whose_replies_are_there() {
        let (turns, now) = (Turns::new(), Instant::now());
        let (mut busy, mut late) = crowd(&turns, now).await;
        assert_eq!(busy[1].proceed(now, true, true), None, "replies are coming");
        assert_eq!(busy[1].proceed(now, true, false), None, "it waits again");
        let permit = late.come().await;
        assert_eq!(late.take(now, permit), Some(ALLOWANCE));
        assert_eq!(busy[0].proceed(now, false, false), Some(Some(0)));
        drop(busy[1].come().await);
    }

    #[test]
    fn who_is_alone_goes_on_without_an_end() {
        let (turns, now) = (Turns::new(), Instant::now());
        let mut alone = begin(&turns, now);
        for at in 0..100 {
            let now = now + at * LONGEST;
            assert_eq!(alone.proceed(now, true, true), Some(Some(ALLOWANCE)));
        }
        assert_eq!(alone.deadline(), Some(now + 100 * LONGEST));
    }

    #[tokio::test]
    async fn who_is_late_by_chance_waits_again_and_leaves_the_turn_to_others() {
        let (turns, start) = (Turns::new(), Instant::now());
        let (mut busy, mut late) = crowd(&turns, start).await;
        let now = start + LONGEST;
        assert_eq!(busy[0].proceed(now, true, true), None);
        assert_eq!(busy[0].deadline(), None);
        let permit = late.come().await;
        late.take(now, permit);
    }

    #[test]
    fn who_is_late_again_and_again_goes_without_for_longer_and_longer() {
        let (turns, mut now) = (Turns::new(), Instant::now());
        let mut slow = begin(&turns, now);
        for _ in 0..FORGIVEN {
            now = be_late(&mut slow, now);
            assert_eq!(slow.proceed(now, false, true), Some(Some(0)));
        }
        let mut exemptions = Vec::new();
        for _ in 0..40 {
            now = be_late(&mut slow, now);
            assert_eq!(slow.proceed(now, false, true), Some(None));
            let until = slow.deadline().unwrap();
            exemptions.push(until - now);
            now = until;
            assert_eq!(slow.proceed(now, false, false), Some(Some(0)));
        }
        assert_eq!(exemptions[..3], [EXEMPTION, 2 * EXEMPTION, 4 * EXEMPTION]);
        assert_eq!(exemptions[39], LONGEST_EXEMPTION);
        assert_eq!(slow.proceed(now, true, false), Some(Some(ALLOWANCE)));
        assert_eq!(slow.proceed(now, false, false), Some(Some(0)), "in time");
        now = be_late(&mut slow, now);
        assert_eq!(slow.proceed(now, false, true), Some(Some(0)), "forgiven");
    }

    #[tokio::test]
    async fn sessions_that_end_leave_their_turns_to_others() {
        let (turns, now) = (Turns::new(), Instant::now());
        drop(crowd(&turns, now).await);
        assert_eq!(turns.0.available_permits(), AT_ONCE);
    }

    #[test]
    fn without_turns_everything_is_allowed() {
        let now = Instant::now();
        let mut turn = Turn::new(None, now);
        assert_eq!(turn.proceed(now, true, true), None);
        assert_eq!(turn.deadline(), None, "nothing will ever change that");
    }
}
