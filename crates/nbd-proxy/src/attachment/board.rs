//! Where a session's state is published for those who look on.

use std::time::{Duration, Instant};

use nbd_session::{Geometry, ImageInfo, KeepState};
use tokio::sync::watch;

use super::{Outcome, Phase, Status};
use crate::link::Peer;

/// How often mere counting is published.
const INTERVAL: Duration = Duration::from_secs(1);

/// The present status, and what was published of it.
pub(super) struct Board {
    publisher: watch::Sender<Status>,
    status: Status,
    /// Where the session is but for being held.
    phase: Phase,
    held_until: Option<Instant>,
    changed: bool,
    counted: bool,
    next: Instant,
}

impl Board {
    pub(super) fn new(publisher: watch::Sender<Status>) -> Self {
        let status = publisher.borrow().clone();
        Self {
            phase: status.phase.clone(),
            status,
            publisher,
            held_until: None,
            changed: false,
            counted: false,
            next: Instant::now(),
        }
    }

    /// When [`Self::publish`] has something to do at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.counted.then_some(self.next)
    }

    /// Changes at once, counters at most once in a while.
    pub(super) fn publish(&mut self, now: Instant) {
        if self.changed || (self.counted && now >= self.next) {
            self.publisher.send_replace(self.status.clone());
            self.changed = false;
            self.counted = false;
            self.next = now + INTERVAL;
        }
    }

    pub(super) fn count_request(&mut self, bytes_read: u64, bytes_written: u64) {
        self.status.requests += 1;
        self.status.bytes_read += bytes_read;
        self.status.bytes_written += bytes_written;
        self.counted = true;
    }

    pub(super) fn set_peer(&mut self, peer: Peer) {
        self.status.peer = peer;
        self.changed = true;
    }

    pub(super) fn set_image(&mut self, image: Option<ImageInfo>, geometry: Option<&Geometry>) {
        self.status.image = image;
        if let Some(geometry) = geometry {
            self.status.size = geometry.size;
            self.status.read_only = geometry.read_only;
        }
        self.changed = true;
    }

    pub(super) fn set_device(&mut self, path: Option<String>) {
        self.status.device = path;
        self.changed = true;
    }

    pub(super) fn set_busy_with(&mut self, what: Option<&'static str>) {
        self.changed |= self.status.busy_with != what;
        self.status.busy_with = what;
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.combine();
    }

    pub(super) fn set_held(&mut self, until: Option<Instant>) {
        self.held_until = until;
        self.combine();
    }

    pub(super) fn set_alone(&mut self, alone: bool) {
        self.status.alone = alone;
        self.changed = true;
    }

    /// How far the copy is: mere progress is published like a counter.
    pub(super) fn set_keep(&mut self, keep: Option<&KeepState>) {
        if self.status.keep.as_ref() == keep {
            return;
        }
        let mark = |keep: &KeepState| (keep.whole, keep.problem.is_some());
        self.changed |= self.status.keep.as_ref().map(mark) != keep.map(mark);
        self.counted = true;
        self.status.keep = keep.cloned();
    }

    /// Of the whole copy. Nobody is told but the audit trail, so there is nothing to publish.
    pub(super) fn set_sha256(&mut self, sha256: String) {
        self.status.sha256 = Some(sha256);
    }

    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    pub(super) fn set_outcome(&mut self, outcome: Outcome, draining_for: Vec<String>) {
        self.status.outcome = Some(outcome);
        self.status.draining_for = draining_for;
        self.changed = true;
    }

    /// Of the device's phase and the link's: a session that ends is no longer held.
    fn combine(&mut self) {
        self.status.phase = match (&self.phase, self.held_until) {
            (Phase::Attaching | Phase::Attached, Some(until)) => Phase::Held { until },
            (phase, _) => phase.clone(),
        };
        self.changed = true;
    }

    /// The present status.
    pub(super) fn status(&self) -> &Status {
        &self.status
    }
}
