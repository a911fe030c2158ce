//! Which image a session has, and whether another link's is the same.

use nbd::Export;
use nbd::wire::TransmissionFlags;

use super::config::{LinkKind, SessionConfig};
use super::flight::HEADROOM;
use crate::control::{ImageInfo, printable};
use crate::reason::Fault;

/// The largest image, in bytes: its length, padded to sectors, has to fit into 63 bits.
const MAX_SIZE: u64 = (1 << 63) - 512;
/// What a device may have been told that the image can do.
const ABILITIES: TransmissionFlags = TransmissionFlags::SEND_FLUSH
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_CACHE)
    .union(TransmissionFlags::SEND_FAST_ZERO);

/// An image as one link offers it.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) export: Export,
    /// As announced; made from the export on a plain link.
    pub(super) info: ImageInfo,
    pub(super) kind: LinkKind,
    /// The longest READ or WRITE, in bytes.
    pub(super) max_request: u32,
}

impl Identity {
    /// What a link offers with `export`, after it announced `image`.
    pub(super) fn new(
        mut export: Export,
        image: Option<ImageInfo>,
        kind: LinkKind,
        config: &SessionConfig,
    ) -> Result<Self, Fault> {
        check_size(&export, image.as_ref())?;
        export.name = printable(&export.name);
        export.description = export
            .description
            .map(|description| printable(&description));
        let max_request = max_request(&export, config)?;
        let info = image.unwrap_or_else(|| ImageInfo {
            name: export.name.clone(),
            size: export.size,
            modified: None,
        });
        Ok(Self {
            export,
            info,
            kind,
            max_request,
        })
    }

    /// Checks that `other` can stand in for this image; `written` says whether the session has changed it.
    pub(super) fn check_same(&self, other: &Self, written: bool) -> Result<(), Fault> {
        self.check_announced(&other.info, other.kind, written)?;
        let both_plain = self.kind == LinkKind::Plain && other.kind == LinkKind::Plain;
        if both_plain && self.export.name != other.export.name {
            return Err(different(
                "export name",
                &self.export.name,
                &other.export.name,
            ));
        }
        if both_plain && self.export.description != other.export.description {
            return Err(Fault::other_image(
                "the export's description is not that of the session's image",
            ));
        }
        self.check_abilities(other)
    }

    /// Checks what a link announces before its handshake.
    pub(super) fn check_announced(
        &self,
        other: &ImageInfo,
        kind: LinkKind,
        written: bool,
    ) -> Result<(), Fault> {
        if self.info.size != other.size {
            return Err(different(
                "size",
                &self.info.size.to_string(),
                &other.size.to_string(),
            ));
        }
        if self.kind == LinkKind::Plain || kind == LinkKind::Plain {
            return Ok(());
        }
        if self.info.name != other.name {
            return Err(different("name", &self.info.name, &other.name));
        }
        if self.info.modified != other.modified && !written {
            return Err(Fault::other_image(
                "the image was modified since the session began",
            ));
        }
        Ok(())
    }

    fn check_abilities(&self, other: &Self) -> Result<(), Fault> {
        if self.export.is_read_only() != other.export.is_read_only() {
            let now = if other.export.is_read_only() {
                "read-only"
            } else {
                "writable"
            };
            return Err(Fault::other_image(format_args!(
                "the image is {now} now, which the session's was not"
            )));
        }
        let missing = self
            .export
            .flags
            .intersection(ABILITIES)
            .difference(other.export.flags);
        if !missing.is_empty() {
            return Err(Fault::other_image(format_args!(
                "the image lacks abilities of the session's: {missing:?}"
            )));
        }
        let minimum = |identity: &Self| identity.export.effective_block_sizes().minimum;
        if minimum(other) > minimum(self) || other.max_request < self.max_request {
            return Err(Fault::other_image(
                "the image has narrower block sizes than the session's",
            ));
        }
        Ok(())
    }
}

fn check_size(export: &Export, image: Option<&ImageInfo>) -> Result<(), Fault> {
    if export.size == 0 {
        return Err(Fault::bad_image(
            "it is empty (0 bytes); choose a file with content",
        ));
    }
    if export.size > MAX_SIZE {
        return Err(Fault::bad_image(format_args!(
            "{} bytes are more than a device can have",
            export.size
        )));
    }
    match image {
        Some(image) if image.size != export.size => {
            let (announced, size) = (image.size, export.size);
            Err(Fault::bad_image(format_args!(
                "{announced} bytes were announced, but the export has {size}"
            )))
        }
        _ => Ok(()),
    }
}

/// The longest request that both sides can take, a multiple of the minimum block size.
fn max_request(export: &Export, config: &SessionConfig) -> Result<u32, Fault> {
    let sizes = export.effective_block_sizes();
    let in_flight =
        u32::try_from(config.max_in_flight.saturating_sub(HEADROOM)).unwrap_or(u32::MAX);
    let most = config.max_request.min(in_flight).min(sizes.maximum);
    let minimum = sizes.minimum.max(1);
    match most / minimum * minimum {
        0 => Err(Fault::bad_image(format_args!(
            "its minimum block size {minimum} is above the longest request, {most}"
        ))),
        whole => Ok(whole),
    }
}

fn different(what: &str, session: &str, link: &str) -> Fault {
    Fault::other_image(format_args!(
        "another image than the session's: its {what} is {link}, not {session}"
    ))
}
