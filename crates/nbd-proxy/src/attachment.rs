//! One session from its first link to its end: handshake, attach, start hook, serve, stop hook, detach.
//!
//! [`Attachment`] is a handle; the session lives in a task of its own (`worker`), which selects one event after the
//! other and applies it. Whatever may take long (attaching, hooks, looking for users, detaching) runs beside it as a
//! job, since it may wait for the very requests that the task answers.

#[cfg(feature = "serve")]
mod adoption;
mod auditing;
mod board;
mod ending;
mod keeping;
mod lifecycle;
mod recording;
mod steps;
mod turns;
mod worker;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

#[cfg(feature = "serve")]
pub(crate) use adoption::Adoption;
use nbd_session::{EndReason, ImageInfo, KeepState, Session, Volume};
use tokio::sync::{mpsc, oneshot, watch};
pub(crate) use turns::Turns;

use crate::{
    audit::Audit,
    claim::Claim,
    config::{Config, Configuration, Keep, Media},
    device::{AttachMode, DeviceSpec},
    hook::Hook,
    link::{Link, Peer},
};

/// How long an eject by force may take before it is answered: who asked has the answer within 5 s.
const FORCED_EJECT: Duration = Duration::from_millis(4500);
/// How long a device may take to detach, or to finish attaching, when its session is over: much longer than a slow
/// machine needs, and less than a server that is told to end waits for its sessions.
const PATIENCE: Duration = Duration::from_secs(8);

/// More than the headers of a request and of its answer, in bytes.
#[cfg(feature = "serve")]
const MESSAGE_HEADERS: u64 = 64 << 10;

/// How much is asked of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The longest request, in bytes.
    pub(crate) max_request: u32,
    /// Replies outstanding at once with their headers, in bytes.
    pub(crate) max_in_flight: u64,
    /// What of a read-only image may be in memory, in bytes; 0: nothing, and nothing is read ahead.
    pub(crate) cache: u64,
    /// What the device's clients may hold together, in bytes.
    pub(crate) device_memory: usize,
}

impl Limits {
    /// What `bmcweb` can take: it closes the session above a message of 128 KiB and 16 bytes, and above 524,352 bytes
    /// queued toward us, less what it may move under a write that is pending.
    pub(crate) const STDIO: Self = Self {
        max_request: 128 << 10,
        max_in_flight: 384 << 10,
        cache: 0,
        // More requests than the link takes at once only wait.
        device_memory: 384 << 10,
    };
    /// Big requests, since a browser's reads cost about the same whatever their size.
    #[cfg(feature = "serve")]
    pub(crate) const SERVE: Self = Self {
        max_request: 4 << 20,
        max_in_flight: 32 << 20,
        cache: 32 << 20,
        device_memory: crate::device::budget::BUDGET,
    };
}

#[cfg(feature = "serve")]
impl Limits {
    /// What a session may have in memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.max_in_flight + self.device_memory as u64 + self.cache
    }

    /// The same with at most `bytes` in memory. What is on its way is cut least: the longest request stays as it is, for
    /// a device was told of it.
    pub(crate) fn within(self, bytes: u64) -> Self {
        let one_request = (u64::from(self.max_request) + MESSAGE_HEADERS).min(self.max_in_flight);
        let max_in_flight = self.max_in_flight.min(one_request.max(bytes / 4));
        let rest = bytes.saturating_sub(max_in_flight);
        let device_memory = (rest - self.cache.min(rest / 2)).min(self.device_memory as u64);
        Self {
            max_in_flight,
            cache: self.cache.min(rest - device_memory),
            device_memory: usize::try_from(device_memory).unwrap_or(self.device_memory),
            ..self
        }
    }
}

/// What a session needs to know of its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Name of the configuration.
    pub(crate) name: String,
    /// What the machine gets.
    pub(crate) device: DeviceSpec,
    /// How a kernel device is attached.
    pub(crate) attach: AttachMode,
    /// The state hook.
    pub(crate) hook: Hook,
    /// What the hook is told that the device is.
    pub(crate) media: Media,
    /// How long one request may stay unanswered on a live link.
    pub(crate) timeout: Duration,
    /// How long the session is kept without a link.
    pub(crate) hold: Duration,
    /// The first link is the only one that can be.
    pub(crate) one_link: bool,
    /// How long the peer of a `v=1` link may be silent.
    pub(crate) silence: Duration,
    /// Whether and where a copy of the image is made.
    pub(crate) keep: Option<Keep>,
    /// How much is asked of a link.
    pub(crate) limits: Limits,
    /// How long a device may take to detach, or to finish attaching, once the session is over.
    pub(crate) patience: Duration,
    /// R.
    pub(crate) runtime_dir: PathBuf,
    /// Where the session's life is told.
    pub(crate) audit: Audit,
    /// The turns that it takes with the other sessions of a server; None: it is the only one.
    pub(crate) turns: Option<Turns>,
}

impl Settings {
    /// For the stdin/stdout form: no hold, no copy, and a swift end.
    pub(crate) fn for_stdio(
        config: &Config,
        configuration: &Configuration,
        runtime_dir: PathBuf,
    ) -> Self {
        let asked = Self::with_limits(config, configuration, runtime_dir, Limits::STDIO);
        Self {
            hold: Duration::ZERO,
            one_link: true,
            keep: None,
            limits: Limits {
                max_request: asked.limits.max_request.min(Limits::STDIO.max_request),
                max_in_flight: asked.limits.max_in_flight.min(Limits::STDIO.max_in_flight),
                cache: Limits::STDIO.cache,
                device_memory: Limits::STDIO.device_memory,
            },
            patience: Duration::from_millis(300),
            ..asked
        }
    }

    /// For `serve`.
    #[cfg(feature = "serve")]
    pub(crate) fn for_serve(
        config: &Config,
        configuration: &Configuration,
        runtime_dir: PathBuf,
        audit: Audit,
    ) -> Self {
        Self {
            audit,
            ..Self::with_limits(config, configuration, runtime_dir, Limits::SERVE)
        }
    }

    fn with_limits(
        config: &Config,
        configuration: &Configuration,
        runtime_dir: PathBuf,
        limits: Limits,
    ) -> Self {
        Self {
            name: configuration.name.clone(),
            device: configuration.device.clone(),
            attach: configuration.attach,
            hook: Hook::of(configuration),
            media: configuration.media,
            timeout: config.timeout,
            hold: configuration.hold,
            one_link: false,
            silence: configuration.silence,
            keep: configuration.keep.clone(),
            limits: Limits {
                max_request: configuration.max_request.unwrap_or(limits.max_request),
                max_in_flight: configuration.max_in_flight.unwrap_or(limits.max_in_flight),
                cache: configuration.cache.unwrap_or(limits.cache),
                device_memory: limits.device_memory,
            },
            patience: PATIENCE,
            runtime_dir,
            audit: Audit::off(),
            turns: None,
        }
    }
}

/// Where a session is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// From the first link until the start hook has ended well.
    Attaching,
    /// The machine has its device.
    Attached,
    /// The same without a link.
    Held {
        /// When it ends unless somebody comes.
        until: Instant,
    },
    /// It is ending: stop hook, detach, and the last close of whoever still has the device open.
    Draining,
    /// Nothing is left of it.
    Ended,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should, with a sentence why.
    InOrder(String),
    /// As it should not, with a sentence why.
    Failed(String),
}

/// A snapshot of a session, for people and programs that look on.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// Set once the device is detached, be it that somebody still has it open.
    pub(crate) outcome: Option<Outcome>,
    /// Who keeps a detached device from being free.
    pub(crate) draining_for: Vec<String>,
    /// What runs beside the session's task, in words.
    pub(crate) busy_with: Option<&'static str>,
    /// The image, once the handshake is done.
    pub(crate) image: Option<ImageInfo>,
    /// The device's path, once there is one.
    pub(crate) device: Option<String>,
    /// The device's length in bytes; 0 until known.
    pub(crate) size: u64,
    /// Whether the machine can only read.
    pub(crate) read_only: bool,
    /// Who serves the image, or did so last.
    pub(crate) peer: Peer,
    /// Since when there is a session.
    pub(crate) since: SystemTime,
    /// Bytes that the machine has read.
    pub(crate) bytes_read: u64,
    /// Bytes that the machine has written.
    pub(crate) bytes_written: u64,
    /// Requests of the machine that were answered.
    pub(crate) requests: u64,
    /// How far the copy of the image is, where one is wanted.
    pub(crate) keep: Option<KeepState>,
    /// Of the whole copy, in hexadecimal, once it is known.
    pub(crate) sha256: Option<String>,
    /// No link serves the image, and none is needed.
    pub(crate) alone: bool,
}

/// Of a session that begins.
impl Default for Status {
    fn default() -> Self {
        Self {
            phase: Phase::Attaching,
            outcome: None,
            draining_for: Vec::new(),
            busy_with: None,
            image: None,
            device: None,
            size: 0,
            read_only: true,
            peer: Peer::default(),
            since: SystemTime::now(),
            bytes_read: 0,
            bytes_written: 0,
            requests: 0,
            keep: None,
            sha256: None,
            alone: false,
        }
    }
}

/// What came of an eject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ejected {
    /// The device is gone.
    Free,
    /// The device is being given up, but not free yet.
    Draining {
        /// What it waits for.
        users: Vec<String>,
    },
}

/// Why an eject was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EjectError {
    /// Somebody uses the device.
    #[error("the device is in use: {}", .0.join(", "))]
    InUse(Vec<String>),
    /// The device would not go.
    #[error("{0}")]
    Failed(String),
}

/// A session, for those who look after it. Clones are the same session; when the last one is dropped, it ends.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    orders: mpsc::UnboundedSender<Order>,
    status: watch::Receiver<Status>,
}

/// What a session is told.
#[derive(Debug)]
enum Order {
    Link(Link),
    Challenge(Link),
    End(EndReason),
    #[cfg(feature = "serve")]
    Leave,
    Eject {
        force: bool,
        answer: oneshot::Sender<Result<Ejected, EjectError>>,
    },
}

impl Attachment {
    /// Begins a session, which waits for its first link. `session` is its ID, without blanks. Must be called
    /// within the runtime.
    pub(crate) fn start(settings: Settings, claim: Claim, session: String) -> Self {
        let volume = Volume::new(Session::new(worker::session_config(&settings)));
        Self::spawn(settings, claim, session, volume, Status::default(), |_| {})
    }

    fn spawn(
        settings: Settings,
        claim: Claim,
        session: String,
        volume: Volume,
        status: Status,
        prepare: impl FnOnce(&mut worker::Worker),
    ) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (publisher, status) = watch::channel(status);
        let mut worker = worker::Worker::new(settings, claim, session, volume, inbox, publisher);
        prepare(&mut worker);
        tokio::spawn(worker.run());
        Self { orders, status }
    }

    /// Gives it a new link, which supersedes the one that it may have.
    pub(crate) fn link(&self, link: Link) {
        // A session that is over drops the link, which closes it.
        let _ = self.orders.send(Order::Link(link));
    }

    /// Gives it a link that may take over once it has shown that it serves the same image. Until then, and if it does
    /// not, the link that it may have serves on.
    #[cfg(feature = "serve")]
    pub(crate) fn challenge(&self, link: Link) {
        let _ = self.orders.send(Order::Challenge(link));
    }

    /// Ends it in order, whoever uses the device. Later reasons than the first change nothing.
    pub(crate) fn end(&self, reason: EndReason) {
        let _ = self.orders.send(Order::End(reason));
    }

    /// Leaves its device to the process that comes after us, as it is, requests in flight and all. Where no process
    /// could go on with it, it ends in order.
    #[cfg(feature = "serve")]
    pub(crate) fn leave(&self) {
        let _ = self.orders.send(Order::Leave);
    }

    /// Ends it as somebody here wishes: unless forced, not while the device is in use beyond what the start hook set
    /// up. Forced, this returns within 5 s.
    #[cfg(feature = "serve")]
    pub(crate) async fn eject(&self, force: bool) -> Result<Ejected, EjectError> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order::Eject { force, answer }).is_err() {
            return Ok(Ejected::Free);
        }
        let limit = if force { FORCED_EJECT } else { Duration::MAX };
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Ok(Ejected::Free),
            Err(_) => {
                let busy_with = self.status.borrow().busy_with;
                let what = busy_with.unwrap_or("detaching the device");
                Ok(Ejected::Draining {
                    users: vec![format!("{what} has not finished")],
                })
            }
        }
    }

    /// Its state, now and from now on.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits until the device is detached; somebody may still have it open.
    pub(crate) async fn detached(&self) -> Outcome {
        self.wait_for(|status| status.outcome.is_some()).await
    }

    /// Waits until nothing is left of it.
    #[cfg(feature = "serve")]
    pub(crate) async fn ended(&self) -> Outcome {
        self.wait_for(|status| status.phase == Phase::Ended).await
    }

    async fn wait_for(&self, condition: impl FnMut(&Status) -> bool) -> Outcome {
        let mut status = self.status.clone();
        let found = status
            .wait_for(condition)
            .await
            .ok()
            .and_then(|status| status.outcome.clone());
        found.unwrap_or_else(|| {
            Outcome::Failed("the session's task ended early; this is a bug of nbd-proxy".into())
        })
    }
}

#[cfg(test)]
#[cfg(feature = "serve")]
mod tests;
