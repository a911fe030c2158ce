//! What another process needs to go on with a session, after this one has ended.

use std::time::Instant;

use nbd::wire::TransmissionFlags;
use nbd::{BlockSizes, Export};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::{LinkKind, SessionConfig};
use super::identity::Identity;
use super::seen::{Seen, SeenRecord};
use super::{Session, State};
use crate::control::ImageInfo;

/// What is known of a session's image. It has the key of the hashes of what was seen: not for the eyes of peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    image: ImageInfo,
    /// Whether `image` is what a `v=1` link announced.
    announced: bool,
    export: ExportRecord,
    seen: SeenRecord,
}

/// An [`Export`] in plain numbers and strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ExportRecord {
    name: String,
    description: Option<String>,
    size: u64,
    flags: u16,
    /// Minimum, preferred, maximum.
    block_sizes: Option<[u32; 3]>,
}

/// Why a session cannot be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// [`SessionConfig::hold`] is zero.
    #[error("sessions without a link are not held here (\"hold\" is 0)")]
    NotHeld,
    /// Writes of it may be lost.
    #[error("its image can be written to")]
    Writable,
    /// What it says of the image cannot be.
    #[error("what was noted of its image makes no sense: {0}")]
    Malformed(String),
}

impl Snapshot {
    /// The image as it was announced; of a plain link, by the export's name.
    pub fn image(&self) -> &ImageInfo {
        &self.image
    }
}

impl Session {
    /// What another process needs to go on with this session: see [`Self::restore`]. `None` where that cannot be: the
    /// image is not known yet; it can be written to, so that writes which no FLUSH has covered would be lost; the
    /// session would not be held, or is to end.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let identity = self.identity.as_ref()?;
        let passes = self.state == State::Ended || self.ending.is_some();
        if passes || self.config.hold.is_zero() || !identity.export.is_read_only() {
            return None;
        }
        Some(Snapshot {
            image: identity.info.clone(),
            announced: identity.kind == LinkKind::V1,
            export: ExportRecord::of(&identity.export),
            seen: self.seen.record_all(),
        })
    }

    /// Grows when [`Self::snapshot`] has something to tell that it had not before.
    pub fn revision(&self) -> u64 {
        self.seen.revision()
    }

    /// Goes on with a session of another process, which had no time to say goodbye. It is held from now on, has its
    /// image from the beginning, and takes requests; a link resumes it by the same rules as ever. What the other
    /// process had not answered has to be submitted anew. An older snapshot serves as well as the last.
    pub fn restore(
        config: SessionConfig,
        now: Instant,
        snapshot: Snapshot,
    ) -> Result<Self, RestoreError> {
        if config.hold.is_zero() {
            return Err(RestoreError::NotHeld);
        }
        let export = snapshot.export.export()?;
        if !export.is_read_only() {
            return Err(RestoreError::Writable);
        }
        let kind = if snapshot.announced {
            LinkKind::V1
        } else {
            LinkKind::Plain
        };
        let identity = Identity::new(export, Some(snapshot.image), kind, &config)
            .map_err(|fault| RestoreError::Malformed(fault.reason))?;
        let seen = Seen::restore(
            snapshot.seen,
            config.seed,
            identity.export.size,
            identity.max_request,
        );
        let until = now + config.hold;
        let mut session = Self {
            identity: Some(identity),
            seen,
            ..Self::new(config)
        };
        session.wait(until, "the server was restarted".into());
        Ok(session)
    }
}

impl ExportRecord {
    fn of(export: &Export) -> Self {
        Self {
            name: export.name.clone(),
            description: export.description.clone(),
            size: export.size,
            flags: export.flags.bits(),
            block_sizes: export
                .block_sizes
                .map(|sizes| [sizes.minimum, sizes.preferred, sizes.maximum]),
        }
    }

    fn export(self) -> Result<Export, RestoreError> {
        let block_sizes = self
            .block_sizes
            .map(|[minimum, preferred, maximum]| BlockSizes {
                minimum,
                preferred,
                maximum,
            });
        if let Some(sizes) = &block_sizes {
            sizes
                .validate()
                .map_err(|error| RestoreError::Malformed(error.to_string()))?;
        }
        Ok(Export {
            name: self.name,
            description: self.description,
            size: self.size,
            flags: TransmissionFlags::from_bits_truncate(self.flags),
            block_sizes,
        })
    }
}
