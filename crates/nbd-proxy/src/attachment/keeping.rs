//! The copy of the image: its store, and what is said of it.

use std::time::Instant;

use super::worker::Worker;
use crate::{
    audit::Event,
    keep::{Keeper, Kept, Subject},
    report,
};

impl Worker {
    /// The device is attached, so that it is known what the copy must not lie on: makes the store, if one is wanted.
    pub(super) fn start_keeper(&mut self, now: Instant) {
        let (Some(keep), Some(geometry)) = (&self.settings.keep, self.volume.geometry()) else {
            return;
        };
        if self.life.is_ending() {
            return;
        }
        if !geometry.read_only {
            return self.refuse_keep(now, "the image can be written to".into());
        }
        let subject = Subject {
            name: self.settings.name.clone(),
            session: self.session.clone(),
            size: geometry.image_size,
            device: self.board.status().device.clone().unwrap_or_default(),
        };
        match Keeper::start(keep.clone(), subject) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => self.refuse_keep(now, format!("can't start a thread: {error}")),
        }
    }

    /// The store says something.
    pub(super) fn apply_kept(&mut self, now: Instant, kept: Option<Kept>) {
        match kept {
            Some(Kept::Opened) => self.volume.begin_keep(now),
            Some(Kept::Refused(problem)) => self.refuse_keep(now, problem),
            Some(Kept::Done(task, result)) => self.volume.handle_stored(now, task, result),
            Some(Kept::Hashed(sha256)) => {
                self.board.set_sha256(sha256);
                self.audit(Event::Kept);
            }
            None => {
                self.keeper = None;
                self.volume
                    .give_up_keep(now, "the copy's thread has ended".into());
            }
        }
    }

    /// There is no copy: the image is streamed.
    fn refuse_keep(&mut self, now: Instant, problem: String) {
        self.drop_keeper(&problem);
        self.volume.refuse_keep(now, problem);
    }

    /// The copy is not needed any more.
    pub(super) fn drop_keeper(&mut self, problem: &str) {
        self.keeper = None;
        report::warning(format_args!(
            "configuration {:?}: no copy is kept, the image is streamed: {problem}",
            self.settings.name
        ));
    }

    /// The copy is whole and verified.
    pub(super) fn show_whole(&mut self) {
        report::information(format_args!(
            "configuration {:?}: the image is here as a whole: the one who serves it may go",
            self.settings.name
        ));
        self.board.set_held(None);
        if let (Some(keeper), Some(hasher)) = (&self.keeper, self.settings.audit.hasher()) {
            keeper.hash(hasher);
        }
    }

    /// The link is gone, which does no harm.
    pub(super) fn show_alone(&mut self, reason: &str) {
        self.lines.information(format_args!(
            "configuration {:?}: goes on from its copy, without a link: {reason}",
            self.settings.name
        ));
        self.board.set_held(None);
        self.board.set_alone(true);
        let reason = reason.to_owned();
        self.audit(|session| Event::Alone { session, reason });
    }
}
