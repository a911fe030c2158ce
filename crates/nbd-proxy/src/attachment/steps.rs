//! The steps of a session's life: how each begins, and what follows from its result.

use std::{future::Future, sync::Arc, time::Instant};

use nbd_session::{DevicePhase, EndReason, Geometry};
use tokio::sync::oneshot;

use super::{
    EjectError, Phase,
    auditing::{image_of, origin_of},
    lifecycle::{HookState, Job, Next},
    worker::Worker,
};
use crate::{
    audit::Event,
    device::{self, AttachRequest, AttachedDevice, Detached, DeviceError},
    hook::{Action, HookError, Subject},
    report,
};

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
    /// Whether the device was left.
    #[cfg(feature = "serve")]
    Leave(bool),
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
                #[cfg(feature = "serve")]
                Next::Begin(Job::Leave) => self.begin_leaving(now),
                Next::Finish => self.finish(now),
            }
        }
    }

    pub(super) fn begin_job(
        &mut self,
        job: Job,
        work: impl Future<Output = Finished> + Send + 'static,
    ) {
        self.life.running = Some(job);
        self.jobs.spawn(work);
    }

    fn begin_attach(&mut self, now: Instant) {
        let Some(geometry) = self.volume.geometry().cloned() else {
            return self.begin_end(
                now,
                EndReason::Failed("the image's size is not known".into()),
            );
        };
        let request = self.attach_request(geometry);
        let spec = self.settings.device.clone();
        self.begin_job(Job::Attach, async move {
            Finished::Attach(device::attach(&spec, request).await)
        });
    }

    pub(super) fn attach_request(&self, geometry: Geometry) -> AttachRequest {
        AttachRequest {
            name: self.settings.name.clone(),
            session: self.session.clone(),
            geometry,
            hold: self.settings.hold,
            attach: self.settings.attach,
            memory: self.settings.limits.device_memory,
            requests: self.to_requests.clone(),
            events: self.to_device_events.clone(),
            runtime_dir: self.settings.runtime_dir.clone(),
        }
    }

    fn begin_start(&mut self, now: Instant) {
        let Some(device) = self.life.device.clone() else {
            return;
        };
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
            let result = hook
                .run(Action::Start, &subject, "attached", abandoned)
                .await;
            // Nobody asks who uses the device of a session that failed to start.
            let users = if result.is_ok() {
                device.users().await
            } else {
                Vec::new()
            };
            Finished::Start(result, users)
        });
    }

    fn begin_look(&mut self) {
        let Some(device) = self.life.device.clone() else {
            return;
        };
        self.begin_job(Job::LookForUsers, async move {
            Finished::LookForUsers(device.users().await)
        });
    }

    fn begin_stop(&mut self) {
        let Some(ending) = &self.life.ending else {
            return;
        };
        let (hook, subject, reason) = (
            self.settings.hook.clone(),
            self.subject(),
            ending.reason.word(),
        );
        let forgotten = self.recording.forget();
        self.begin_job(Job::Stop, async move {
            forgotten.wait().await;
            if !hook.exists() {
                return Finished::Stop(Ok(()));
            }
            let (_never, abandon) = oneshot::channel();
            Finished::Stop(hook.run(Action::Stop, &subject, reason, abandon).await)
        });
    }

    fn begin_detach(&mut self, now: Instant) {
        let (Some(device), Some(ending)) = (self.life.device.clone(), &self.life.ending) else {
            return;
        };
        let force = ending.force;
        if force {
            // What is outstanding fails, so that nobody who takes part in the detach waits for it.
            self.volume.end(now, ending.reason.clone());
        }
        self.life.give_up_at = Some(now + self.settings.patience);
        let forgotten = self.recording.forget();
        self.begin_job(Job::Detach, async move {
            forgotten.wait().await;
            Finished::Detach {
                forced: force,
                result: device.detach(force).await,
            }
        });
    }

    fn begin_wait(&mut self) {
        let Some(device) = self.life.device.clone() else {
            return;
        };
        self.begin_job(Job::AwaitLastClose, async move {
            device.drained().await;
            Finished::AwaitLastClose
        });
    }

    pub(super) fn show_device(&mut self, now: Instant, phase: DevicePhase) {
        self.volume
            .set_device(now, phase, self.board.status().device.clone());
    }

    fn subject(&self) -> Subject {
        let status = self.board.status();
        Subject {
            device: status.device.clone().unwrap_or_default(),
            size: status.size,
            read_only: status.read_only,
            image: status
                .image
                .as_ref()
                .map(|image| image.name.clone())
                .unwrap_or_default(),
            user: status.peer.user.clone(),
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
            #[cfg(feature = "serve")]
            Finished::Leave(left) => self.finish_leaving(now, left),
        }
    }

    fn finish_attach(&mut self, now: Instant, result: Result<AttachedDevice, DeviceError>) {
        match result {
            Ok(device) => {
                self.board.set_device(Some(device.path().into()));
                self.life.device = Some(Arc::new(device));
                let phase = if self.life.is_ending() {
                    DevicePhase::Draining
                } else {
                    DevicePhase::Attaching
                };
                self.show_device(now, phase);
                self.start_keeper(now);
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
            "configuration {:?}: {}, {} bytes, attached as {}, {}{}",
            self.settings.name,
            image_of(status),
            status.size,
            status.device.as_deref().unwrap_or("?"),
            if status.read_only {
                "read-only"
            } else {
                "writable"
            },
            origin_of(&status.peer),
        ));
        self.audit(Event::Attached);
        self.board.set_phase(Phase::Attached);
        self.show_device(now, DevicePhase::Attached);
    }

    fn finish_look(&mut self, now: Instant, users: &[String]) {
        if self.life.is_ending() {
            return;
        }
        let others: Vec<_> = users
            .iter()
            .filter(|user| !self.life.hook_users.contains(user))
            .cloned()
            .collect();
        if others.is_empty() {
            return self.begin(now, EndReason::Ejected, false, None);
        }
        for answer in self.life.asked_to_eject.drain(..) {
            let _ = answer.send(Err(EjectError::InUse(others.clone())));
        }
    }

    fn finish_stop(&mut self, result: Result<(), HookError>) {
        self.life.hook = HookState::Settled;
        if let Err(error) = result {
            report::warning(error);
        }
        if let Err(error) = self.claim.note_stop() {
            report::warning(error);
        }
    }

    fn finish_detach(&mut self, now: Instant, forced: bool, result: Result<Detached, DeviceError>) {
        let Some(ending) = &mut self.life.ending else {
            return;
        };
        match result {
            Ok(Detached::Free) => self.life.device = None,
            Ok(Detached::Draining { users }) => self.settle(now, users),
            // Somebody has insisted meanwhile: once more.
            Err(DeviceError::InUse { .. }) if !forced && ending.force => {}
            Err(DeviceError::InUse { users, .. }) if !forced => self.call_off(now, &users),
            Err(error) => {
                ending.failure.get_or_insert(error.to_string());
                self.life.device = None;
            }
        }
    }

    /// Somebody used the device after all: the session goes on as it was, start hook and all.
    fn call_off(&mut self, now: Instant, users: &[String]) {
        let Some(ending) = self.life.ending.take() else {
            return;
        };
        for answer in ending.answers {
            let _ = answer.send(Err(EjectError::InUse(users.to_vec())));
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
