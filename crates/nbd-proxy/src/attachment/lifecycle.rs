//! What is to be done next, from attach to detach, as it follows from a few facts.

use std::{sync::Arc, time::Instant};

use nbd_session::EndReason;
use tokio::sync::oneshot;

use super::{EjectError, Ejected};
use crate::device::AttachedDevice;

/// Where the answer to an eject goes.
pub(super) type Answer = oneshot::Sender<Result<Ejected, EjectError>>;

/// The facts. At most one job runs at a time.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    /// The image is known.
    pub(super) ready: bool,
    /// The attached device.
    pub(super) device: Option<Arc<AttachedDevice>>,
    pub(super) hook: HookState,
    /// Who used the device when `start` had ended: what it set up, which does not count against an eject.
    pub(super) hook_users: Vec<String>,
    /// Ejects that wait for a look at the device's users.
    pub(super) asked_to_eject: Vec<Answer>,
    pub(super) ending: Option<Ending>,
    pub(super) running: Option<Job>,
    /// Ends a running `start` early.
    pub(super) abandon_start: Option<oneshot::Sender<()>>,
    /// When the running job is given up.
    pub(super) give_up_at: Option<Instant>,
    /// When requests are no longer served though `stop` is still running.
    pub(super) fail_requests_at: Option<Instant>,
    /// The device is to be left to another process.
    #[cfg(feature = "serve")]
    pub(super) leaving: bool,
    /// Nothing is left to do.
    pub(super) over: bool,
}

/// Whether `stop` is owed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum HookState {
    /// `start` is still to be run.
    #[default]
    Pending,
    /// `start` was begun: `stop` has to be run.
    Begun,
    /// `stop` has run, or there is no hook.
    Settled,
}

/// That the session is to end, and how.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) reason: EndReason,
    /// Whether the device is taken from those who use it.
    pub(super) force: bool,
    /// Ejects to be answered.
    pub(super) answers: Vec<Answer>,
    /// What went wrong on the way.
    pub(super) failure: Option<String>,
    /// Who keeps the detached device.
    pub(super) drains_for: Vec<String>,
}

/// What runs beside the session's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// The device is being attached.
    Attach,
    /// `start` is running.
    Start,
    /// It is being looked up who uses the device.
    LookForUsers,
    /// `stop` is running.
    Stop,
    /// The device is being detached.
    Detach,
    /// Somebody still has the detached device open.
    AwaitLastClose,
    /// The device is being left to another process.
    #[cfg(feature = "serve")]
    Leave,
}

impl Job {
    /// For people: what fails, or has not finished yet.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Attach => "attaching the device",
            Self::Start | Self::Stop => "the state hook",
            Self::LookForUsers => "looking for the users of the device",
            Self::Detach | Self::AwaitLastClose => "detaching the device",
            #[cfg(feature = "serve")]
            Self::Leave => "leaving the device to another process",
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Begin this job.
    Begin(Job),
    /// The end.
    Finish,
}

impl Lifecycle {
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether the machine has its device, and nobody is about to take it away.
    pub(super) fn is_attached(&self) -> bool {
        let has_started = match self.hook {
            HookState::Pending => false,
            HookState::Begun => self.running != Some(Job::Start),
            HookState::Settled => true,
        };
        self.device.is_some() && self.ending.is_none() && has_started
    }

    /// Who keeps the detached device, if somebody does.
    pub(super) fn drains_for(&self) -> Option<Vec<String>> {
        let ending = self.ending.as_ref()?;
        (!ending.drains_for.is_empty()).then(|| ending.drains_for.clone())
    }

    /// When one of the two deadlines has come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.give_up_at
            .into_iter()
            .chain(self.fail_requests_at)
            .min()
    }

    /// None: wait for something to happen.
    pub(super) fn next(&self) -> Option<Next> {
        if self.running.is_some() || self.over {
            return None;
        }
        match &self.ending {
            #[cfg(feature = "serve")]
            None if self.leaving => Some(Next::Begin(Job::Leave)),
            None => self.next_upward().map(Next::Begin),
            Some(ending) => Some(self.next_downward(ending)),
        }
    }

    fn next_upward(&self) -> Option<Job> {
        match (&self.device, self.hook) {
            (None, _) => self.ready.then_some(Job::Attach),
            (Some(_), HookState::Pending) => Some(Job::Start),
            (Some(_), _) => (!self.asked_to_eject.is_empty()).then_some(Job::LookForUsers),
        }
    }

    fn next_downward(&self, ending: &Ending) -> Next {
        match (&self.device, self.hook) {
            (_, HookState::Begun) => Next::Begin(Job::Stop),
            (Some(_), _) if ending.drains_for.is_empty() => Next::Begin(Job::Detach),
            (Some(_), _) => Next::Begin(Job::AwaitLastClose),
            (None, _) => Next::Finish,
        }
    }
}
