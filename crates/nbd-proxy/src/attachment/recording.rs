//! What is noted of the session for the process that comes after us, and when; and leaving the device to it.

use std::time::{Duration, Instant, UNIX_EPOCH};

use super::worker::Worker;
use crate::record::{Done, Record, Recorder};

/// How often the record is written anew, at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was noted so far.
#[derive(Default)]
pub(super) struct Recording {
    /// Once there was something to note.
    recorder: Option<Recorder>,
    /// The volume's revision that was noted.
    noted: Option<u64>,
    /// When the record may be written again.
    next: Option<Instant>,
    /// There is something that was not noted.
    has_news: bool,
}

impl Recording {
    /// When [`Worker::note`] has something to do at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next.filter(|_| self.has_news)
    }

    /// What was noted has changed.
    pub(super) fn renew(&mut self) {
        self.noted = None;
    }

    /// Nobody is to go on with the session any more.
    pub(super) fn forget(&mut self) -> Forgotten {
        self.noted = None;
        self.has_news = false;
        Forgotten(self.recorder.as_ref().map(Recorder::forget))
    }
}

/// That the record is gone, soon.
pub(super) struct Forgotten(Option<Done>);

impl Forgotten {
    pub(super) async fn wait(self) {
        if let Some(done) = self.0 {
            // A record that can't be removed was complained about.
            done.wait().await;
        }
    }
}

impl Worker {
    /// Notes what the session is now, where that is news.
    pub(super) fn note(&mut self, now: Instant) {
        let revision = self.volume.revision();
        self.recording.has_news = self.recording.noted != Some(revision) && self.can_go_on();
        let is_due = self.recording.next.is_none_or(|next| next <= now);
        if !self.recording.has_news || !is_due {
            return;
        }
        self.recording.has_news = false;
        self.recording.noted = Some(revision);
        self.recording.next = Some(now + INTERVAL);
        if let Some(record) = self.record() {
            self.recorder().note(record);
        }
    }

    /// Whether another process could go on with the device.
    fn can_go_on(&self) -> bool {
        let outlives_us =
            |device: &std::sync::Arc<crate::device::AttachedDevice>| device.outlives_us();
        self.life.is_attached() && self.life.device.as_ref().is_some_and(outlives_us)
    }

    fn recorder(&mut self) -> &Recorder {
        let (folder, name) = (&self.settings.runtime_dir, &self.settings.name);
        self.recording
            .recorder
            .get_or_insert_with(|| Recorder::new(folder, name))
    }

    /// What another process has to know, where it could go on.
    pub(super) fn record(&self) -> Option<Record> {
        if !self.can_go_on() {
            return None;
        }
        let snapshot = self.volume.snapshot()?;
        let status = self.board.status();
        let since = status.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Record {
            id: self.session.clone(),
            device: status.device.clone()?,
            peer: status.peer.clone(),
            since: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            bytes_read: status.bytes_read,
            requests: status.requests,
            hook_users: self.life.hook_users.clone(),
            snapshot,
        })
    }
}

#[cfg(feature = "serve")]
mod leaving {
    use std::time::Instant;

    use nbd_session::EndReason;

    use super::Worker;
    use crate::{
        attachment::{Outcome, Phase, lifecycle::Job, steps::Finished},
        report,
    };

    impl Worker {
        /// Another process is to go on with the session. Where none could, it ends in order.
        pub(in crate::attachment) fn leave(&mut self, now: Instant) {
            if self.record().is_some() {
                self.life.leaving = true;
            } else {
                self.begin_end(now, EndReason::Shutdown);
            }
        }

        /// Notes what the session is, then lets go of the device.
        pub(in crate::attachment) fn begin_leaving(&mut self, now: Instant) {
            let (Some(device), Some(record)) = (self.life.device.clone(), self.record()) else {
                self.life.leaving = false;
                return self.begin_end(now, EndReason::Shutdown);
            };
            let noted = self.recorder().leave(record);
            self.begin_job(Job::Leave, async move {
                let is_noted = noted.wait().await;
                if is_noted {
                    device.leave().await;
                }
                Finished::Leave(is_noted)
            });
        }

        /// Nothing that is dropped from here on reaches the kernel.
        pub(in crate::attachment) fn finish_leaving(&mut self, now: Instant, has_left: bool) {
            self.life.leaving = false;
            if !has_left {
                return self.begin_end(now, EndReason::Shutdown);
            }
            let status = self.board.status();
            let why = format!(
                "{} stays attached for the next nbd-proxy, for {} s",
                status.device.as_deref().unwrap_or_default(),
                self.settings.hold.as_secs()
            );
            let name = &self.settings.name;
            report::information(format_args!("configuration {name:?}: {why}"));
            self.dismiss_links("the server restarts: the session goes on");
            self.board.set_outcome(Outcome::InOrder(why), Vec::new());
            self.board.set_phase(Phase::Ended);
            self.life.over = true;
        }
    }
}
