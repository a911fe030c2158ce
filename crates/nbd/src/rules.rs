//! What a request may ask of an export: the same rules for the client that sends it and the server
//! that gets it.

use crate::command::is_write;
use crate::export::{BlockSizes, Export, Negotiated};
use crate::wire::{CommandFlags, CommandType, Errno, TransmissionFlags};

/// A rule of proto.md that a request breaks ("Request types", "Command flags", "Size constraints").
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRule {
    /// No such command.
    #[error("{0} is no command that can be asked of an export")]
    UnknownCommand(CommandType),
    /// A writing command, and the export is read-only.
    #[error("{0} on a read-only export")]
    ReadOnly(CommandType),
    /// The transmission flags do not offer the command, or its metadata context was not negotiated.
    #[error("{0} was not negotiated")]
    NotNegotiated(CommandType),
    /// These flags do not go with the command, or were not offered.
    #[error("the flags {flags:#06x} of {command} were not negotiated or do not go with it")]
    Flags {
        /// What was asked.
        command: CommandType,
        /// The offending flags.
        flags: u16,
    },
    /// FLUSH has no range: offset and length must be 0.
    #[error("NBD_CMD_FLUSH with an offset or a length")]
    FlushWithRange,
    /// The length is 0.
    #[error("{0} with a length of 0")]
    Empty(CommandType),
    /// More payload than one request may have.
    #[error("a payload of {length} bytes, where {maximum} is the limit: split the request")]
    TooLong {
        /// In bytes.
        length: u64,
        /// In bytes.
        maximum: u32,
    },
    /// The range is not inside the export.
    #[error(
        "{command} of {length} bytes at {offset} reaches beyond the {size} bytes of the export"
    )]
    OutOfRange {
        /// What was asked.
        command: CommandType,
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
        /// Of the export, in bytes.
        size: u64,
    },
    /// Offset or length is not a multiple of the minimum block size.
    #[error("{length} bytes at {offset}, where both must be multiples of {minimum}")]
    Misaligned {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
        /// The minimum block size, in bytes.
        minimum: u32,
    },
}

impl BrokenRule {
    /// What a server answers (proto.md, "Error values").
    pub fn errno(&self) -> Errno {
        match self {
            Self::ReadOnly(_) => Errno::EPERM,
            Self::OutOfRange {
                command: CommandType::WRITE | CommandType::WRITE_ZEROES,
                ..
            } => Errno::ENOSPC,
            _ => Errno::EINVAL,
        }
    }
}

/// The flags without those that mean nothing in this session (proto.md, "Transmission flags"): DF
/// depends on structured replies, fast zeroes on zeroes, and experiments are not taken part in.
pub(crate) fn meaningful_flags(
    mut flags: TransmissionFlags,
    structured_replies: bool,
) -> TransmissionFlags {
    if !structured_replies {
        flags.remove(TransmissionFlags::SEND_DF);
    }
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags.remove(TransmissionFlags::SEND_FAST_ZERO);
    }
    flags - TransmissionFlags::SEND_RESIZE - TransmissionFlags::BLOCK_STATUS_PAYLOAD
}

/// What was announced and agreed on, as far as it bounds requests.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) size: u64,
    pub(crate) flags: TransmissionFlags,
    pub(crate) block_sizes: BlockSizes,
    pub(crate) negotiated: Negotiated,
}

impl Rules {
    pub(crate) fn new(export: &Export, negotiated: Negotiated) -> Self {
        let Export { size, flags, .. } = *export;
        Self {
            size,
            flags,
            block_sizes: export.effective_block_sizes(),
            negotiated,
        }
    }

    /// Whether a request may be made. `flags` are those of the wire, unknown ones included.
    pub(crate) fn check(
        &self,
        flags: u16,
        command: CommandType,
        offset: u64,
        length: u64,
    ) -> Result<(), BrokenRule> {
        self.check_command(command)?;
        let allowed = self.allowed_flags(command).bits();
        if flags & !allowed != 0 {
            return Err(BrokenRule::Flags {
                command,
                flags: flags & !allowed,
            });
        }
        if command != CommandType::FLUSH {
            self.check_range(command, offset, length)
        } else if offset == 0 && length == 0 {
            Ok(())
        } else {
            Err(BrokenRule::FlushWithRange)
        }
    }

    fn check_command(&self, command: CommandType) -> Result<(), BrokenRule> {
        if is_write(command) && self.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(BrokenRule::ReadOnly(command));
        }
        let offered = |flag| self.flags.contains(flag);
        let negotiated = match command {
            CommandType::READ | CommandType::WRITE => true,
            CommandType::FLUSH => offered(TransmissionFlags::SEND_FLUSH),
            CommandType::TRIM => offered(TransmissionFlags::SEND_TRIM),
            CommandType::CACHE => offered(TransmissionFlags::SEND_CACHE),
            CommandType::WRITE_ZEROES => offered(TransmissionFlags::SEND_WRITE_ZEROES),
            CommandType::BLOCK_STATUS => self.negotiated.base_allocation,
            unknown => return Err(BrokenRule::UnknownCommand(unknown)),
        };
        if negotiated {
            Ok(())
        } else {
            Err(BrokenRule::NotNegotiated(command))
        }
    }

    /// The flags that go with a command (proto.md, "Command flags").
    fn allowed_flags(&self, command: CommandType) -> CommandFlags {
        let own = match command {
            CommandType::READ => CommandFlags::DF,
            CommandType::WRITE_ZEROES => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            CommandType::BLOCK_STATUS => CommandFlags::REQ_ONE,
            _ => CommandFlags::empty(),
        };
        [
            (TransmissionFlags::SEND_DF, CommandFlags::DF),
            (TransmissionFlags::SEND_FAST_ZERO, CommandFlags::FAST_ZERO),
            (TransmissionFlags::SEND_FUA, CommandFlags::FUA),
        ]
        .into_iter()
        .filter(|&(exposed_by, _)| !self.flags.contains(exposed_by))
        .fold(own | CommandFlags::FUA, |allowed, (_, flag)| allowed - flag)
    }

    fn check_range(
        &self,
        command: CommandType,
        offset: u64,
        length: u64,
    ) -> Result<(), BrokenRule> {
        let BlockSizes {
            minimum, maximum, ..
        } = self.block_sizes;
        let has_payload = matches!(command, CommandType::READ | CommandType::WRITE);
        if length == 0 {
            return Err(BrokenRule::Empty(command));
        }
        if length > u64::from(if has_payload { maximum } else { u32::MAX }) {
            return Err(BrokenRule::TooLong { length, maximum });
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(BrokenRule::OutOfRange {
                command,
                offset,
                length,
                size: self.size,
            });
        }
        let block = u64::from(minimum);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(BrokenRule::Misaligned {
                offset,
                length,
                minimum,
            });
        }
        Ok(())
    }
}
