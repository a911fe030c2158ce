//! What the trail tells of. docs/security.md lists events and members; they are what other programs read.

use serde::Serialize;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// `serve` takes connections.
    ServerStarted {
        /// Of nbd-proxy.
        version: &'static str,
        /// The addresses it listens on.
        listen: Vec<String>,
    },
    /// `serve` is about to end.
    ServerStopped {
        /// A sentence.
        reason: String,
    },
    /// Somebody has signed in.
    LoginSucceeded {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// By what: `token`, `password`.
        method: &'static str,
    },
    /// Somebody has failed to.
    LoginFailed {
        /// Who they said they were.
        #[serde(flatten)]
        who: Who,
        /// By what.
        method: &'static str,
        /// A sentence.
        reason: String,
    },
    /// Somebody has to wait after failures before: what they sent was not looked at.
    LoginSlowed {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// By what.
        method: &'static str,
        /// For how long, in seconds.
        seconds: u64,
    },
    /// Somebody has signed out.
    LoggedOut {
        /// Who.
        #[serde(flatten)]
        who: Who,
    },
    /// A link was refused.
    LinkRefused {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// As it was asked for.
        configuration: Option<String>,
        /// The session that it named.
        session: Option<String>,
        /// Of the close frame.
        code: u16,
        /// What was said to the peer.
        reason: String,
    },
    /// The machine has the device.
    Attached(Session),
    /// A link of the same user and image serves a session that had lost its own.
    Resumed(Session),
    /// Another link of the same user serves the session on.
    TakenOver(Session),
    /// A new process goes on with the session of one that is gone, which waits for a link.
    #[cfg(feature = "serve")]
    Restored(Session),
    /// The session's link is lost; the machine waits.
    Held {
        /// Which.
        #[serde(flatten)]
        session: Session,
        /// A sentence.
        reason: String,
    },
    /// The session's link is gone, and the copy serves on.
    Alone {
        /// Which.
        #[serde(flatten)]
        session: Session,
        /// A sentence.
        reason: String,
    },
    /// The image is here as a whole; its hash is known.
    Kept(Session),
    /// Somebody wants the device to be detached.
    EjectAsked {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// Of which configuration.
        configuration: String,
    },
    /// Somebody wants the device to be detached, whoever uses it.
    EjectForced {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// Of which configuration.
        configuration: String,
    },
    /// An eject was refused; nothing has changed.
    EjectRefused {
        /// Who.
        #[serde(flatten)]
        who: Who,
        /// Of which configuration.
        configuration: String,
        /// A sentence.
        reason: String,
    },
    /// The device is detached.
    Ended {
        /// Which.
        #[serde(flatten)]
        session: Session,
        /// Whether it ended as it should.
        in_order: bool,
        /// A sentence.
        reason: String,
    },
    /// So many refusals and failed logins came that these were not told.
    EventsOmitted {
        /// Whose; None: of people whom we don't know.
        user: Option<String>,
        /// How many.
        count: u64,
    },
    /// The trail lacks events that happened before this one.
    EventsLost {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// Whether somebody who looks after the machine should look at it.
    pub(super) fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::LoginFailed { .. }
                | Self::LoginSlowed { .. }
                | Self::LinkRefused { .. }
                | Self::EjectForced { .. }
                | Self::Ended {
                    in_order: false,
                    ..
                }
                | Self::EventsOmitted { .. }
                | Self::EventsLost { .. }
        )
    }

    /// Who can cause it as often as they like.
    pub(super) fn cause(&self) -> Option<Cause<'_>> {
        match self {
            Self::LoginFailed { .. } | Self::LoginSlowed { .. } => Some(Cause::Stranger),
            Self::LinkRefused { who, .. } | Self::EjectRefused { who, .. } => {
                Some(who.user.as_deref().map_or(Cause::Stranger, Cause::User))
            }
            _ => None,
        }
    }
}

/// Whose events are told less often than they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause<'a> {
    /// People whom we don't know.
    Stranger,
    /// This one.
    User(&'a str),
}

impl Cause<'_> {
    /// Whose, if we know.
    pub(super) fn user(self) -> Option<String> {
        match self {
            Self::Stranger => None,
            Self::User(user) => Some(user.to_owned()),
        }
    }
}

/// Who did something, and from where.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Who {
    /// None where nobody is known.
    pub(crate) user: Option<String>,
    /// `127.0.0.1:4711`, `the control socket`.
    pub(crate) from: String,
}

/// A session, as far as it is known at the time.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Session {
    /// Who serves its image, or did so last.
    pub(crate) user: String,
    /// From where.
    pub(crate) from: String,
    /// Where it is attached.
    pub(crate) configuration: String,
    /// Its ID.
    pub(crate) session: String,
    /// None until it was announced.
    pub(crate) image: Option<Image>,
    /// What the machine has; None where there is none.
    pub(crate) device: Option<String>,
    /// Whether the machine can only read.
    pub(crate) read_only: bool,
    /// Bytes that the machine has read.
    pub(crate) bytes_read: u64,
    /// Bytes that the machine has written.
    pub(crate) bytes_written: u64,
    /// Requests of the machine that were answered.
    pub(crate) requests: u64,
    /// Since the session began, in milliseconds.
    pub(crate) duration_ms: u64,
}

/// An image, as whoever serves it announced it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Image {
    /// File name; any text.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Milliseconds since 1970, where known.
    pub(crate) modified: Option<i64>,
    /// In hexadecimal, once a whole copy is kept.
    pub(crate) sha256: Option<String>,
}
