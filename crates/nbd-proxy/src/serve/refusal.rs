//! Links that are refused: the code and the reason of their close frame.

use std::fmt::Display;

use nbd_session::ImageInfo;

use super::registry::Occupant;
use crate::{attachment::Status, claim::ClaimError, device::DeviceError};

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
}

impl Refusal {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    /// The query of the address is none that we know: 1008, policy violation.
    pub(super) fn malformed(reason: &str) -> Self {
        Self::new(1008, reason)
    }

    /// Nobody that we know.
    pub(super) fn not_allowed() -> Self {
        Self::new(
            4401,
            "not allowed: open the address that the server printed when it started, or give its token",
        )
    }

    /// No configuration of that name.
    pub(super) fn no_configuration(reason: String) -> Self {
        Self::new(4404, reason)
    }

    /// Somebody else's session is attached.
    pub(super) fn in_use(occupant: &Occupant, image: Option<&ImageInfo>) -> Self {
        let Occupant { user, from, .. } = occupant;
        let image = image
            .map(|image| format!(" with {}", image.name))
            .unwrap_or_default();
        Self::new(
            4409,
            format!("in use by {user} from {from}{image}; eject that first"),
        )
    }

    /// The last session is not quite gone.
    pub(super) fn draining(status: &Status) -> Self {
        let device = status.device.as_deref().unwrap_or("the device");
        Self::new(
            4409,
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

    /// More links than we take.
    pub(super) fn too_many() -> Self {
        Self::new(4429, "too many connections; close some, then try again")
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
                Self::new(4409, error.to_string())
            }
            _ => Self::failed(&error),
        }
    }
}
