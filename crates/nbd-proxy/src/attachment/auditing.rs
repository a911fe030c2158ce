//! What the audit trail is told of a session.

use super::{Status, worker::Worker};
use crate::{
    audit::{Event, Image, Session},
    link::Peer,
};

impl Worker {
    /// Tells of an event of the session as it is now.
    pub(super) fn audit(&self, event: impl FnOnce(Session) -> Event) {
        let status = self.board.status();
        let image = status.image.as_ref().map(|image| Image {
            name: image.name.clone(),
            size: image.size,
            modified: image.modified,
            sha256: status.sha256.clone(),
        });
        let duration = status.since.elapsed().unwrap_or_default();
        self.settings.audit.tell(event(Session {
            user: status.peer.user.clone(),
            from: status.peer.from.clone(),
            configuration: self.settings.name.clone(),
            session: self.session.clone(),
            image,
            device: status.device.clone(),
            read_only: status.read_only,
            bytes_read: status.bytes_read,
            bytes_written: status.bytes_written,
            requests: status.requests,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }));
    }
}

/// The image by its name, for people.
pub(super) fn image_of(status: &Status) -> String {
    match &status.image {
        Some(image) if !image.name.is_empty() => format!("{:?}", image.name),
        _ => "an image without a name".into(),
    }
}

/// Whose link it is, for people, where somebody asked.
pub(super) fn origin_of(peer: &Peer) -> String {
    match peer.user.as_str() {
        "" => format!(", from {}", peer.from),
        user => format!(", by {user} from {}", peer.from),
    }
}
