//! The steps of a session's life: how each begins, and what follows from its result.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use nbd_session::{DevicePhase, EndReason};
use tokio::sync::oneshot;

use super::{
    EjectError, Ejected, Outcome, Phase,
    lifecycle::{Answer, Ending, HookState, Job, Next},
    worker::Worker,
};
use crate::{
    device::{self, AttachRequest, AttachedDevice, Detached, DeviceError},
    hook::{Action, HookError, Subject},
    report,
};

/// How long requests are still served while `stop` runs for an eject by force, which has 5 s in all.
const FORCED_SERVICE: Duration = Duration::from_secs(3);

/// What came of a job.
pub(super) enum Finished {
    Attach(Result<AttachedDevice, DeviceError>),
    /// With those who use the device now.
    Start(Result<(), HookError>, Vec<String>),
    LookForUsers(Vec<String>),
    Stop(Result<(), HookError>),
    Detach {
        forced: bool,
        result: Result<Detached, DeviceError>,
    },
    AwaitLastClose,
}

/// The end, and what leads there.
impl Worker {
    /// The session is to end, whoever uses the device. The first reason stays.
    pub(super) fn begin_end(&mut self, now: Instant, reason: EndReason) {
        self.begin(now, reason, true, None);
    }

    /// Somebody here wants the session to end.
    pub(super) fn begin_eject(&mut self, now: Instant, force: bool, answer: Answer) {
        if let Some(ending) = self.life.ending.as_ref().filter(|ending| !ending.drains_for.is_empty()) {
            let _ = answer.send(Ok(Ejected::Draining { users: ending.drains_for.clone() }));
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

    fn begin(&mut self, now: Instant, reason: EndReason, force: bool, answer: Option<Answer>) {
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
        if self.life.fail_requests_at.take_if(|at| *at <= now).is_some() {
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
        let Some(job) = self.life.running.take() else { return };
        let what = match job {
            Job::Attach => "attaching the device",
            Job::Start | Job::Stop => "running the state hook",
            Job::LookForUsers => "looking for the users of the device",
            Job::Detach | Job::AwaitLastClose => "detaching the device",
        };
        let failure = format!("{what} failed: {cause}");
        match job {
            Job::Stop => self.life.hook = HookState::Settled,
            Job::Detach | Job::AwaitLastClose => self.life.device = None,
            Job::Attach | Job::Start | Job::LookForUsers => {}
        }
        self.begin_end(now, EndReason::Failed(failure.clone()));
        if let Some(ending) = &mut self.life.ending {
            ending.drains_for.clear();
            ending.failure.get_or_insert(failure);
        }
    }

    fn finish(&mut self, now: Instant) {
        self.settle(now, Vec::new());
        self.board.set_device(None);
        self.board.set_phase(Phase::Ended);
        self.life.over = true;
    }

    /// The device is detached, be it that `users` still have it open: the link goes, and everybody is told.
    fn settle(&mut self, now: Instant, users: Vec<String>) {
        let Some(ending) = &mut self.life.ending else { return };
        self.volume.end(now, ending.reason.clone());
        for answer in ending.answers.drain(..) {
            let _ = answer.send(match &ending.failure {
                Some(failure) => Err(EjectError::Failed(failure.clone())),
                None if users.is_empty() => Ok(Ejected::Free),
                None => Ok(Ejected::Draining { users: users.clone() }),
            });
        }
        if self.board.status().outcome.is_some() {
            return;
        }
        let outcome = ending.outcome(self.life.ready);
        let name = &self.settings.name;
        match &outcome {
            Outcome::InOrder(why) => report::information(format_args!("configuration {name:?}: ended: {why}")),
            Outcome::Failed(why) => report::error(format_args!("configuration {name:?}: {why}")),
        }
        if !users.is_empty() {
            report::warning(format_args!("configuration {name:?}: the device is not free yet: {}", users.join(", ")));
        }
        self.board.set_outcome(outcome, users.clone());
        ending.drains_for = users;
    }

    fn show_device(&mut self, now: Instant, phase: DevicePhase) {
        self.volume.set_device(now, phase, self.board.status().device.clone());
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

/// Jobs: how they begin.
impl Worker {
    /// Begins what is next.
    pub(super) fn proceed(&mut self, now: Instant) {
        while let Some(next) = self.life.next() {
            match next {
                Next::Begin(Job::Attach) => self.begin_attach(now),
                Next::Begin(Job::Start) => self.begin_start(now),
                Next::Begin(Job::LookForUsers) => self.begin_look(),
                Next::Begin(Job::Stop) => self.begin_stop(),
                Next::Begin(Job::Detach) => self.begin_detach(now),
                Next::Begin(Job::AwaitLastClose) => self.begin_wait(),
                Next::Finish => self.finish(now),
            }
        }
    }

    fn begin_job(&mut self, job: Job, work: impl Future<Output = Finished> + Send + 'static) {
        self.life.running = Some(job);
        self.jobs.spawn(work);
    }

    fn begin_attach(&mut self, now: Instant) {
        let Some(geometry) = self.volume.geometry().cloned() else {
            return self.begin_end(now, EndReason::Failed("the image's size is not known".into()));
        };
        let request = AttachRequest {
            name: self.settings.name.clone(),
            session: self.session.clone(),
            geometry,
            hold: self.settings.hold,
            attach: self.settings.attach,
            requests: self.to_requests.clone(),
            events: self.to_device_events.clone(),
            runtime_dir: self.settings.runtime_dir.clone(),
        };
        let spec = self.settings.device.clone();
        self.begin_job(Job::Attach, async move { Finished::Attach(device::attach(&spec, request).await) });
    }

    fn begin_start(&mut self, now: Instant) {
        let Some(device) = self.life.device.clone() else { return };
        if !self.settings.hook.exists() {
            self.life.hook = HookState::Settled;
            return self.show_attached(now);
        }
        let subject = self.subject();
        if let Err(error) = self.claim.note_start(&subject) {
            self.life.hook = HookState::Settled;
            return self.begin_end(now, EndReason::Failed(error.to_string()));
        }
        self.life.hook = HookState::Begun;
        let (abandon, abandoned) = oneshot::channel();
        self.life.abandon_start = Some(abandon);
        let hook = self.settings.hook.clone();
        self.begin_job(Job::Start, async move {
            let result = hook.run(Action::Start, &subject, "attached", abandoned).await;
            // Nobody asks who uses the device of a session that failed to start.
            let users = if result.is_ok() { device.users().await } else { Vec::new() };
            Finished::Start(result, users)
        });
    }

    fn begin_look(&mut self) {
        let Some(device) = self.life.device.clone() else { return };
        self.begin_job(Job::LookForUsers, async move { Finished::LookForUsers(device.users().await) });
    }

    fn begin_stop(&mut self) {
        let Some(ending) = &self.life.ending else { return };
        let (hook, subject, reason) = (self.settings.hook.clone(), self.subject(), ending.reason.word());
        self.begin_job(Job::Stop, async move {
            if !hook.exists() {
                return Finished::Stop(Ok(()));
            }
            let (_never, abandon) = oneshot::channel();
            Finished::Stop(hook.run(Action::Stop, &subject, reason, abandon).await)
        });
    }

    fn begin_detach(&mut self, now: Instant) {
        let (Some(device), Some(ending)) = (self.life.device.clone(), &self.life.ending) else { return };
        let force = ending.force;
        if force {
            // What is outstanding fails, so that nobody who takes part in the detach waits for it.
            self.volume.end(now, ending.reason.clone());
        }
        self.life.give_up_at = Some(now + self.settings.patience);
        self.begin_job(Job::Detach, async move {
            Finished::Detach { forced: force, result: device.detach(force).await }
        });
    }

    fn begin_wait(&mut self) {
        let Some(device) = self.life.device.clone() else { return };
        self.begin_job(Job::AwaitLastClose, async move {
            device.drained().await;
            Finished::AwaitLastClose
        });
    }

    fn subject(&self) -> Subject {
        let status = self.board.status();
        Subject {
            device: status.device.clone().unwrap_or_default(),
            size: status.size,
            read_only: status.read_only,
            image: status.image.as_ref().map(|image| image.name.clone()).unwrap_or_default(),
            user: status.user.clone(),
            media: self.settings.media.as_str().into(),
        }
    }
}

/// Jobs: what follows from them.
impl Worker {
    pub(super) fn finish_job(&mut self, now: Instant, finished: Finished) {
        self.life.running = None;
        self.life.give_up_at = None;
        match finished {
            Finished::Attach(result) => self.finish_attach(now, result),
            Finished::Start(result, users) => self.finish_start(now, result, users),
            Finished::LookForUsers(users) => self.finish_look(now, &users),
            Finished::Stop(result) => self.finish_stop(result),
            Finished::Detach { forced, result } => self.finish_detach(now, forced, result),
            Finished::AwaitLastClose => self.finish_wait(),
        }
    }

    fn finish_attach(&mut self, now: Instant, result: Result<AttachedDevice, DeviceError>) {
        match result {
            Ok(device) => {
                self.board.set_device(Some(device.path().into()));
                self.life.device = Some(Arc::new(device));
                let phase = if self.life.is_ending() { DevicePhase::Draining } else { DevicePhase::Attaching };
                self.show_device(now, phase);
            }
            Err(error) => self.begin_end(now, EndReason::Failed(error.to_string())),
        }
    }

    fn finish_start(&mut self, now: Instant, result: Result<(), HookError>, users: Vec<String>) {
        self.life.abandon_start = None;
        self.life.hook_users = users;
        match result {
            Ok(()) if self.life.is_ending() => {}
            Ok(()) => self.show_attached(now),
            Err(error) => self.begin_end(now, EndReason::Failed(error.to_string())),
        }
    }

    fn show_attached(&mut self, now: Instant) {
        let status = self.board.status();
        report::information(format_args!(
            "configuration {:?}: {} bytes attached as {}, {}",
            self.settings.name,
            status.size,
            status.device.as_deref().unwrap_or("?"),
            if status.read_only { "read-only" } else { "writable" },
        ));
        self.board.set_phase(Phase::Attached);
        self.show_device(now, DevicePhase::Attached);
    }

    fn finish_look(&mut self, now: Instant, users: &[String]) {
        if self.life.is_ending() {
            return;
        }
        let others: Vec<_> = users.iter().filter(|user| !self.life.hook_users.contains(user)).cloned().collect();
        if others.is_empty() {
            return self.begin(now, EndReason::Ejected, false, None);
        }
        for answer in self.life.asked_to_eject.drain(..) {
            let _ = answer.send(Err(EjectError::InUse(others.clone())));
        }
    }

    fn finish_stop(&mut self, result: Result<(), HookError>) {
        self.life.hook = HookState::Settled;
        let noted = self.claim.note_stop();
        for problem in [result.err().map(|error| error.to_string()), noted.err().map(|error| error.to_string())] {
            if let Some(problem) = problem {
                report::warning(problem);
            }
        }
    }

    fn finish_detach(&mut self, now: Instant, forced: bool, result: Result<Detached, DeviceError>) {
        let Some(ending) = &mut self.life.ending else { return };
        match result {
            Ok(Detached::Free) => self.life.device = None,
            Ok(Detached::Draining { users }) => self.settle(now, users),
            // Somebody has insisted meanwhile: once more.
            Err(DeviceError::InUse { .. }) if !forced && ending.force => {}
            Err(DeviceError::InUse { users, .. }) if !forced => self.call_off(now, users),
            Err(error) => {
                ending.failure.get_or_insert(error.to_string());
                self.life.device = None;
            }
        }
    }

    /// Somebody used the device after all: the session goes on as it was, start hook and all.
    fn call_off(&mut self, now: Instant, users: Vec<String>) {
        let Some(ending) = self.life.ending.take() else { return };
        for answer in ending.answers {
            let _ = answer.send(Err(EjectError::InUse(users.clone())));
        }
        self.life.hook = HookState::Pending;
        self.board.set_phase(Phase::Attaching);
        self.show_device(now, DevicePhase::Attaching);
    }

    fn finish_wait(&mut self) {
        self.life.device = None;
        if let Some(ending) = &mut self.life.ending {
            ending.drains_for.clear();
        }
    }
}
