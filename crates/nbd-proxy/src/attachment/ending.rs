//! The end of a session, and what leads there.

use std::time::{Duration, Instant};

use nbd_session::{DevicePhase, EndReason};

use super::{
    EjectError, Ejected, Outcome, Phase,
    lifecycle::{Answer, Ending, HookState, Job},
    worker::Worker,
};
use crate::{audit::Event, report};

/// How long requests are still served while `stop` runs for an eject by force, which has 5 s in all.
const FORCED_SERVICE: Duration = Duration::from_secs(3);

impl Worker {
    /// The session is to end, whoever uses the device. The first reason stays.
    pub(super) fn begin_end(&mut self, now: Instant, reason: EndReason) {
        self.begin(now, reason, true, None);
    }

    /// Somebody here wants the session to end.
    pub(super) fn begin_eject(&mut self, now: Instant, force: bool, answer: Answer) {
        if let Some(users) = self.life.drains_for() {
            let _ = answer.send(Ok(Ejected::Draining { users }));
        } else if force {
            self.life.fail_requests_at = Some(now + FORCED_SERVICE);
            self.begin(now, EndReason::Ejected, true, Some(answer));
        } else if let Some(ending) = &mut self.life.ending {
            ending.answers.push(answer);
        } else if self.life.device.is_none() {
            // Without a device there is nothing that could be in use.
            self.begin(now, EndReason::Ejected, true, Some(answer));
        } else {
            self.life.asked_to_eject.push(answer);
        }
    }

    pub(super) fn begin(
        &mut self,
        now: Instant,
        reason: EndReason,
        force: bool,
        answer: Option<Answer>,
    ) {
        let newly = self.life.ending.is_none();
        let ending = self.life.ending.get_or_insert_with(|| Ending {
            reason,
            force,
            answers: Vec::new(),
            failure: None,
            drains_for: Vec::new(),
        });
        ending.force |= force;
        ending.answers.append(&mut self.life.asked_to_eject);
        ending.answers.extend(answer);
        if newly {
            self.board.set_phase(Phase::Draining);
            self.show_device(now, DevicePhase::Draining);
            if self.life.running == Some(Job::Attach) {
                self.life.give_up_at = Some(now + self.settings.patience);
            }
            if let Some(abandon) = self.life.abandon_start.take() {
                let _ = abandon.send(());
            }
        }
        self.drain(now);
    }

    /// While the session ends, requests are served by a living link, and otherwise fail at once. An eject that may
    /// still be refused leaves a living link alone, since there is no way back from here.
    pub(super) fn drain(&mut self, now: Instant) {
        let held = self.board.is_held();
        if let Some(ending) = &mut self.life.ending
            && (ending.force || held)
        {
            ending.force = true;
            self.volume.drain(now, ending.reason.clone());
        }
    }

    /// One of the lifecycle's deadlines may have come.
    pub(super) fn handle_deadline(&mut self, now: Instant) {
        if self
            .life
            .fail_requests_at
            .take_if(|at| *at <= now)
            .is_some()
        {
            self.volume.end(now, EndReason::Ejected);
        }
        if self.life.give_up_at.take_if(|at| *at <= now).is_some() {
            self.jobs.abort_all();
            self.jobs.detach_all();
            self.lose_job(now, "it did not end in time");
        }
    }

    /// A job will not give its result.
    pub(super) fn lose_job(&mut self, now: Instant, cause: &str) {
        let Some(job) = self.life.running.take() else {
            return;
        };
        let failure = format!("{} failed: {cause}", job.name());
        match job {
            Job::Stop => self.life.hook = HookState::Settled,
            Job::Detach | Job::AwaitLastClose => self.life.device = None,
            #[cfg(feature = "serve")]
            Job::Leave => self.life.leaving = false,
            Job::Attach | Job::Start | Job::LookForUsers => {}
        }
        self.begin_end(now, EndReason::Failed(failure.clone()));
        if let Some(ending) = &mut self.life.ending {
            ending.drains_for.clear();
            ending.failure.get_or_insert(failure);
        }
    }

    /// Nothing is left to do.
    pub(super) fn finish(&mut self, now: Instant) {
        self.settle(now, Vec::new());
        self.keeper = None;
        self.board.set_device(None);
        self.board.set_phase(Phase::Ended);
        self.life.over = true;
    }

    /// The device is detached, be it that `users` still have it open: the link goes, and everybody is told.
    pub(super) fn settle(&mut self, now: Instant, users: Vec<String>) {
        let Some(ending) = &mut self.life.ending else {
            return;
        };
        self.volume.end(now, ending.reason.clone());
        for answer in ending.answers.drain(..) {
            let _ = answer.send(match &ending.failure {
                Some(failure) => Err(EjectError::Failed(failure.clone())),
                None if users.is_empty() => Ok(Ejected::Free),
                None => Ok(Ejected::Draining {
                    users: users.clone(),
                }),
            });
        }
        if self.board.status().outcome.is_some() {
            return;
        }
        let outcome = ending.outcome(self.life.ready);
        let name = &self.settings.name;
        match &outcome {
            Outcome::InOrder(why) => {
                report::information(format_args!("configuration {name:?}: ended: {why}"));
            }
            Outcome::Failed(why) => report::error(format_args!("configuration {name:?}: {why}")),
        }
        if !users.is_empty() {
            report::warning(format_args!(
                "configuration {name:?}: the device is not free yet: {}",
                users.join(", ")
            ));
        }
        ending.drains_for.clone_from(&users);
        let in_order = matches!(outcome, Outcome::InOrder(_));
        let (Outcome::InOrder(reason) | Outcome::Failed(reason)) = outcome.clone();
        self.audit(|session| Event::Ended {
            session,
            in_order,
            reason,
        });
        self.board.set_outcome(outcome, users);
    }
}

impl Ending {
    fn outcome(&self, ready: bool) -> Outcome {
        match (&self.failure, &self.reason) {
            (Some(failure), reason) if !reason.is_failure() => Outcome::Failed(failure.clone()),
            (_, EndReason::Closed) if !ready => {
                Outcome::Failed("the link was closed before the image was known".into())
            }
            (_, reason) if reason.is_failure() => Outcome::Failed(reason.to_string()),
            (_, reason) => Outcome::InOrder(reason.to_string()),
        }
    }
}
