//! The fixed-length headers: parsed from and built as arrays of their exact length.
//!
//! Magic numbers are checked by whoever parses, because a wrong one means something else to each of
//! them.

use super::{
    CHUNK_MAGIC, ChunkFlags, ChunkType, CommandType, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionCode,
    OptionReplyCode, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
};

/// The two bytes at `at` of a header of known length, big-endian.
pub(crate) fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The four bytes at `at` of a header of known length, big-endian.
pub(crate) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// The eight bytes at `at` of a header of known length, big-endian.
pub(crate) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// A length field for `length` bytes that are to be sent. Whatever is sent is bounded far below
/// 4 GiB before it gets here.
pub(crate) fn wire_length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Writes `fields` one after the other into an array; their lengths must add up to `N`.
fn assemble<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    debug_assert_eq!(at, N);
    bytes
}

/// Begins an option; `length` bytes of data follow (proto.md, "Newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// What is asked for.
    pub option: OptionCode,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 16;

    /// The header, or the wrong magic number.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, u64> {
        match u64_at(bytes, 0) {
            OPTION_MAGIC => Ok(Self {
                option: OptionCode(u32_at(bytes, 8)),
                length: u32_at(bytes, 12),
            }),
            magic => Err(magic),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        assemble(&[
            &OPTION_MAGIC.to_be_bytes(),
            &self.option.0.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// Begins a reply to an option; `length` bytes of data follow (proto.md, "Fixed newstyle
/// negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option this answers.
    pub option: OptionCode,
    /// The answer.
    pub reply: OptionReplyCode,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 20;

    /// The header, or the wrong magic number.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, u64> {
        match u64_at(bytes, 0) {
            OPTION_REPLY_MAGIC => Ok(Self {
                option: OptionCode(u32_at(bytes, 8)),
                reply: OptionReplyCode(u32_at(bytes, 12)),
                length: u32_at(bytes, 16),
            }),
            magic => Err(magic),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        assemble(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &self.option.0.to_be_bytes(),
            &self.reply.0.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// Begins a request; WRITE has `length` bytes of payload after it (proto.md, "Request message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags as sent, unknown ones included.
    pub flags: u16,
    /// The command.
    pub command: CommandType,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// In bytes, from the beginning of the export.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 28;

    /// The header, or the wrong magic number.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, u32> {
        match u32_at(bytes, 0) {
            REQUEST_MAGIC => Ok(Self {
                flags: u16_at(bytes, 4),
                command: CommandType(u16_at(bytes, 6)),
                cookie: u64_at(bytes, 8),
                offset: u64_at(bytes, 16),
                length: u32_at(bytes, 24),
            }),
            magic => Err(magic),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        assemble(&[
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.0.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// A simple reply; for a READ that succeeded the data follows (proto.md, "Simple reply message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReplyHeader {
    /// 0, or an [`Errno`](super::Errno) by its number.
    pub error: u32,
    /// The request this answers.
    pub cookie: u64,
}

impl SimpleReplyHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 16;

    /// The header, or the wrong magic number.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, u32> {
        match u32_at(bytes, 0) {
            SIMPLE_REPLY_MAGIC => Ok(Self {
                error: u32_at(bytes, 4),
                cookie: u64_at(bytes, 8),
            }),
            magic => Err(magic),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        assemble(&[
            &SIMPLE_REPLY_MAGIC.to_be_bytes(),
            &self.error.to_be_bytes(),
            &self.cookie.to_be_bytes(),
        ])
    }
}

/// Begins a chunk of a structured reply; `length` bytes of payload follow (proto.md, "Structured
/// reply chunk message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether this is the last chunk; unknown flags are kept and ignored.
    pub flags: ChunkFlags,
    /// What the payload means.
    pub chunk: ChunkType,
    /// The request this answers.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 20;

    /// The header, or the wrong magic number.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, u32> {
        match u32_at(bytes, 0) {
            CHUNK_MAGIC => Ok(Self {
                flags: ChunkFlags::from_bits_retain(u16_at(bytes, 4)),
                chunk: ChunkType(u16_at(bytes, 6)),
                cookie: u64_at(bytes, 8),
                length: u32_at(bytes, 16),
            }),
            magic => Err(magic),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        assemble(&[
            &CHUNK_MAGIC.to_be_bytes(),
            &self.flags.bits().to_be_bytes(),
            &self.chunk.0.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}
