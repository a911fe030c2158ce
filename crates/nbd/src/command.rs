//! What is asked of an export, and the answer.

use std::fmt;

use crate::payload::Payload;
use crate::wire::{CommandType, Errno, ExtentFlags};

/// A request to an export (proto.md, "Request types"). Offsets and lengths are in bytes.
///
/// `NBD_CMD_DISC` is not among them: it ends the session and has no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Read `length` bytes at `offset`.
    Read {
        /// Where the range begins.
        offset: u64,
        /// How long it is, at least 1.
        length: u32,
    },
    /// Write `data` at `offset`.
    Write {
        /// Where the range begins.
        offset: u64,
        /// What to write, at least 1 byte.
        data: Payload,
    },
    /// Bring every write that was answered to stable storage.
    Flush,
    /// The range is no longer needed; its content becomes undefined.
    Trim {
        /// Where the range begins.
        offset: u64,
        /// How long it is, at least 1.
        length: u32,
    },
    /// The range will be needed soon.
    Cache {
        /// Where the range begins.
        offset: u64,
        /// How long it is, at least 1.
        length: u32,
    },
    /// Fill the range with zeroes.
    WriteZeroes {
        /// Where the range begins.
        offset: u64,
        /// How long it is, at least 1.
        length: u32,
    },
    /// Describe the extents of the range in `base:allocation`.
    BlockStatus {
        /// Where the range begins.
        offset: u64,
        /// How long it is, at least 1.
        length: u32,
    },
}

impl Command {
    /// The command's number on the wire.
    pub fn command_type(&self) -> CommandType {
        match self {
            Self::Read { .. } => CommandType::READ,
            Self::Write { .. } => CommandType::WRITE,
            Self::Flush => CommandType::FLUSH,
            Self::Trim { .. } => CommandType::TRIM,
            Self::Cache { .. } => CommandType::CACHE,
            Self::WriteZeroes { .. } => CommandType::WRITE_ZEROES,
            Self::BlockStatus { .. } => CommandType::BLOCK_STATUS,
        }
    }

    /// Where its range begins; 0 for FLUSH.
    pub fn offset(&self) -> u64 {
        match *self {
            Self::Flush => 0,
            Self::Read { offset, .. }
            | Self::Write { offset, .. }
            | Self::Trim { offset, .. }
            | Self::Cache { offset, .. }
            | Self::WriteZeroes { offset, .. }
            | Self::BlockStatus { offset, .. } => offset,
        }
    }

    /// Bytes of its range; 0 for FLUSH. Longer than `u32::MAX` only for a WRITE that no peer can be
    /// sent.
    pub fn length(&self) -> u64 {
        match *self {
            Self::Flush => 0,
            Self::Write { ref data, .. } => data.len() as u64,
            Self::Read { length, .. }
            | Self::Trim { length, .. }
            | Self::Cache { length, .. }
            | Self::WriteZeroes { length, .. }
            | Self::BlockStatus { length, .. } => u64::from(length),
        }
    }

    /// Whether it changes the export: WRITE, TRIM and WRITE_ZEROES.
    pub fn is_write(&self) -> bool {
        is_write(self.command_type())
    }
}

/// Whether commands of this type change the export.
pub(crate) fn is_write(command: CommandType) -> bool {
    matches!(
        command,
        CommandType::WRITE | CommandType::TRIM | CommandType::WRITE_ZEROES
    )
}

/// What a command that succeeded gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done: WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES.
    Done,
    /// What a READ read: exactly as much as was asked for.
    Data(Payload),
    /// The extents of a BLOCK_STATUS from its offset on, at least one.
    BlockStatus(Vec<Extent>),
}

/// A range with one status in `base:allocation` (proto.md, `NBD_REPLY_TYPE_BLOCK_STATUS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// In bytes, at least 1.
    pub length: u32,
    /// What is known of the range.
    pub flags: ExtentFlags,
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// For programs.
    pub errno: Errno,
    /// For people; empty where the peer said nothing.
    pub message: String,
}

impl Failure {
    /// A failure with an explanation.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::new(errno, "")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            self.errno.fmt(f)
        } else {
            write!(f, "{} ({})", self.message, self.errno)
        }
    }
}
