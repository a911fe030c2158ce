//! What a disk made of an image is like.

use nbd::Export;
use nbd::wire::TransmissionFlags;

/// Devices are multiples of this, in bytes: the kernel counts capacity in sectors.
pub const SECTOR: u64 = 512;

/// What a disk made of an image is like, for whoever shows it to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The image's length in bytes, at least 1.
    pub image_size: u64,
    /// The disk's length in bytes: the image's, padded with zeroes to whole sectors.
    pub size: u64,
    /// Whether writing commands fail with EPERM.
    pub read_only: bool,
    /// The image's name; may be empty.
    pub name: String,
    /// For people, where the image has one.
    pub description: Option<String>,
    /// Ranges of writing commands must be multiples of this, in bytes; 1 for a read-only disk.
    pub minimum_block: u32,
    /// Whether FLUSH does something. It always succeeds on a disk that has nothing to flush.
    pub can_flush: bool,
    /// Whether the flag FUA may be used.
    pub can_fua: bool,
    /// Whether TRIM does something.
    pub can_trim: bool,
    /// Whether WRITE_ZEROES may be used.
    pub can_write_zeroes: bool,
    /// Whether the flag FAST_ZERO may be used.
    pub can_fast_zero: bool,
    /// Whether CACHE does something.
    pub can_cache: bool,
    /// Whether near offsets are near in time.
    pub rotational: bool,
}

impl Geometry {
    /// The disk of `export`, whose image is called `name`.
    pub(super) fn of(export: &Export, name: String) -> Self {
        let has = |flag| export.flags.contains(flag);
        let read_only = export.is_read_only();
        Self {
            image_size: export.size,
            size: export.size.next_multiple_of(SECTOR),
            read_only,
            name,
            description: export.description.clone(),
            minimum_block: if read_only {
                1
            } else {
                export.effective_block_sizes().minimum
            },
            can_flush: !read_only && has(TransmissionFlags::SEND_FLUSH),
            can_fua: !read_only && has(TransmissionFlags::SEND_FUA),
            can_trim: !read_only && has(TransmissionFlags::SEND_TRIM),
            can_write_zeroes: !read_only && has(TransmissionFlags::SEND_WRITE_ZEROES),
            can_fast_zero: !read_only && has(TransmissionFlags::SEND_FAST_ZERO),
            can_cache: has(TransmissionFlags::SEND_CACHE),
            rotational: has(TransmissionFlags::ROTATIONAL),
        }
    }
}
