//! Links that are refused: the code and the reason of their close frame.

use std::fmt::Display;

use super::{
    limits::{Limit, Reached},
    rights,
};
use crate::{
    attachment::Status,
    claim::ClaimError,
    config::{Configuration, Right},
    device::DeviceError,
    link, units,
};

/// The most characters of an image's name that are told.
const NAME_LENGTH: usize = 32;

/// Close code: nobody that we know, or nobody who may.
const NOT_ALLOWED: u16 = 4401;
/// Close code: this machine can't.
pub(super) const FAILED: u16 = 4500;

/// Why a link is refused. A browser tells its page nothing of an HTTP status, so the WebSocket is opened, and closed
/// with these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Of the close frame; docs/protocol.md lists them.
    pub(super) code: u16,
    /// A sentence for people.
    pub(super) reason: String,
    /// What there was no room for, where that is the cause.
    pub(super) limit: Option<Limit>,
}

impl Refusal {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            limit: None,
        }
    }

    /// The query of the address is none that we know: 1008, policy violation.
    pub(super) fn malformed(reason: &str) -> Self {
        Self::new(1008, reason)
    }

    /// Nobody that we know.
    pub(super) fn not_allowed() -> Self {
        Self::new(
            NOT_ALLOWED,
            "not allowed: sign in on the page, open the address that the server printed when it started, or give a token",
        )
    }

    /// Somebody whom we know, without the right.
    pub(super) fn not_permitted(user: &str, right: Right, configuration: &Configuration) -> Self {
        Self::new(NOT_ALLOWED, rights::missing(user, right, configuration))
    }

    /// Who came in by what is taken back.
    pub(super) fn signed_out() -> Self {
        Self::new(
            NOT_ALLOWED,
            "signed out, or what was signed in with was revoked; sign in again",
        )
    }

    /// No configuration of that name.
    pub(super) fn no_configuration(reason: String) -> Self {
        Self::new(4404, reason)
    }

    /// Another session is attached. Tells who is there, from where, with what, and since when.
    pub(super) fn in_use(status: &Status, same_user: bool) -> Self {
        let peer = &status.peer;
        let image = status.image.as_ref().map(|image| {
            let name: String = image.name.chars().take(NAME_LENGTH).collect();
            format!(" with {name}")
        });
        let since = units::duration(status.since.elapsed().unwrap_or_default());
        let remedy = if same_user {
            "eject that, or take it over"
        } else {
            "eject that first"
        };
        Self::new(
            link::IN_USE,
            format!(
                "in use by {} from {}{}, for {since}; {remedy}",
                peer.user,
                peer.from,
                image.unwrap_or_default()
            ),
        )
    }

    /// The last session is not quite gone.
    pub(super) fn draining(status: &Status) -> Self {
        let device = status.device.as_deref().unwrap_or("the device");
        Self::new(
            link::IN_USE,
            match status.draining_for.join(", ") {
                users if users.is_empty() => {
                    format!("draining: {device} is being detached; try again in a moment")
                }
                users => format!(
                    "draining: {device} is detached but not free before it is closed: {users}"
                ),
            },
        )
    }

    /// More than we take on.
    pub(super) fn too_many(reached: Reached) -> Self {
        Self {
            limit: Some(reached.limit),
            ..Self::new(4429, reached.to_string())
        }
    }

    /// The server is on its way out.
    pub(super) fn stopping() -> Self {
        Self::new(1001, "the server is stopping")
    }

    /// This machine can't.
    pub(super) fn failed(error: &dyn Display) -> Self {
        Self::new(FAILED, error.to_string())
    }
}

impl From<ClaimError> for Refusal {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Busy { .. } | ClaimError::Leftover(DeviceError::InUse { .. }) => {
                Self::new(link::IN_USE, error.to_string())
            }
            _ => Self::failed(&error),
        }
    }
}
