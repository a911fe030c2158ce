//! Why a link was closed, and why a session ended.

use std::fmt;

/// Close codes of a link, beyond those of RFC 6455, section 7.4.1. The program adds those of its own refusals.
pub mod close {
    /// In order.
    pub const NORMAL: u16 = 1000;
    /// The server stops.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke a rule of NBD or of the link.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// The image cannot be attached: it is empty, or is not what was announced.
    pub const BAD_IMAGE: u16 = 4400;
    /// The peer was silent, or left a request unanswered, for too long.
    pub const TIMEOUT: u16 = 4408;
    /// In use by somebody else.
    pub const IN_USE: u16 = 4409;
    /// Another image than the session's.
    pub const OTHER_IMAGE: u16 = 4410;
    /// A newer link took over.
    pub const SUPERSEDED: u16 = 4412;
    /// This machine failed: its device, or its hook.
    pub const MACHINE_FAILED: u16 = 4500;
}

/// Why a session ended. As text it is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The one who served the image said so.
    Bye,
    /// The one who served the image closed the link in order.
    Closed,
    /// Somebody ejected it here.
    Ejected,
    /// The kernel device was disconnected (`NBD_CMD_DISC`).
    Disconnected,
    /// Nobody came back while it was held.
    HoldExpired,
    /// The link was lost, and the session is not held; with what happened to the link.
    LinkLost(String),
    /// The image cannot be attached; with the cause.
    Refused(String),
    /// The server stops.
    Shutdown,
    /// This machine failed, its device or its hook; with the cause.
    Failed(String),
}

impl EndReason {
    /// One word for programs: the hook's `_REASON` and the `reason` of the `end` message.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Bye => "bye",
            Self::Closed => "closed",
            Self::Ejected => "ejected",
            Self::Disconnected => "disconnected",
            Self::HoldExpired => "hold-expired",
            Self::LinkLost(_) => "link-lost",
            Self::Refused(_) => "refused",
            Self::Shutdown => "shutdown",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether the session did not end in order.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::HoldExpired | Self::LinkLost(_) | Self::Refused(_) | Self::Failed(_)
        )
    }

    /// The code with which the session's last link is closed; never 1000 for a failure.
    pub fn close_code(&self) -> u16 {
        match self {
            Self::Bye | Self::Closed | Self::Ejected | Self::Disconnected => close::NORMAL,
            Self::Shutdown => close::GOING_AWAY,
            Self::Refused(_) => close::BAD_IMAGE,
            Self::HoldExpired | Self::LinkLost(_) => close::TIMEOUT,
            Self::Failed(_) => close::MACHINE_FAILED,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bye => f.write_str("the image was taken away by the one who served it"),
            Self::Closed => f.write_str("the link was closed by the one who served the image"),
            Self::Ejected => f.write_str("the image was ejected"),
            Self::Disconnected => f.write_str("the device was disconnected on the machine"),
            Self::HoldExpired => f.write_str("nobody came back to serve the image in time"),
            Self::LinkLost(cause) => write!(f, "the link was lost: {cause}"),
            Self::Refused(cause) => write!(f, "the image cannot be attached: {cause}"),
            Self::Shutdown => f.write_str("the server is stopping"),
            Self::Failed(cause) => f.write_str(cause),
        }
    }
}

/// Why the session closes a link by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Fault {
    /// The peer broke a rule.
    pub(crate) fn violation(rule: impl fmt::Display) -> Self {
        Self {
            code: close::PROTOCOL_ERROR,
            reason: rule.to_string(),
        }
    }

    /// Plain links carry NBD bytes alone.
    pub(crate) fn text_on_plain() -> Self {
        Self::violation("a text message on a plain link")
    }

    /// A link has one image.
    pub(crate) fn second_image() -> Self {
        Self::violation("a second `image` message")
    }

    /// The peer gives up before it ever served the session.
    pub(crate) fn early_bye() -> Self {
        Self {
            code: close::NORMAL,
            reason: "`bye` before it served the image".into(),
        }
    }

    /// The image cannot be attached.
    pub(crate) fn bad_image(cause: impl fmt::Display) -> Self {
        Self {
            code: close::BAD_IMAGE,
            reason: cause.to_string(),
        }
    }

    /// The image is not the session's.
    pub(crate) fn other_image(difference: impl fmt::Display) -> Self {
        Self {
            code: close::OTHER_IMAGE,
            reason: difference.to_string(),
        }
    }

    /// The peer took too long.
    pub(crate) fn timeout(what: impl fmt::Display) -> Self {
        Self {
            code: close::TIMEOUT,
            reason: what.to_string(),
        }
    }

    /// How a session ends whose only link had this fault.
    pub(crate) fn end_reason(&self) -> EndReason {
        match self.code {
            close::BAD_IMAGE | close::PROTOCOL_ERROR => EndReason::Refused(self.reason.clone()),
            _ => EndReason::LinkLost(self.reason.clone()),
        }
    }
}
