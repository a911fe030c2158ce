//! A request that waits for its reply, and the rules for the chunks of that reply
//! (proto.md, "Structured reply types").

use super::TransmissionError;
use super::coverage::{Coverage, CoverageError, MAX_RANGES};
use crate::command::{Command, Extent, Failure};
use crate::text::display_text;
use crate::wire::{
    ChunkHeader, ChunkType, CommandFlags, CommandType, Errno, ExtentFlags, MAX_EXTENTS,
    MAX_STRING_LENGTH, u16_at, u32_at, u64_at, wire_length,
};

/// How many error chunks are taken in one reply. Unlike content, nothing else bounds their number.
const MAX_ERROR_CHUNKS: u32 = 1024;
/// The longest error chunk: error, length, message, and room for fields of later versions.
const MAX_ERROR_LENGTH: u32 = 8 * 1024;

/// A request without its whole reply.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) command: CommandType,
    pub(super) offset: u64,
    pub(super) length: u32,
    flags: CommandFlags,
    coverage: Coverage,
    has_content: bool,
    has_status: bool,
    errors: u32,
    failure: Option<Failure>,
}

impl Pending {
    pub(super) fn new(flags: CommandFlags, command: &Command) -> Self {
        Self {
            command: command.command_type(),
            offset: command.offset(),
            length: u32::try_from(command.length()).unwrap_or(u32::MAX),
            flags,
            coverage: Coverage::default(),
            has_content: false,
            has_status: false,
            errors: 0,
            failure: None,
        }
    }

    /// Whether such a chunk may come in reply, judged by its header alone: nothing is waited for
    /// that is going to be refused.
    pub(super) fn check_header(&self, header: &ChunkHeader) -> Result<(), TransmissionError> {
        let ChunkHeader { chunk, length, .. } = *header;
        let fits = match (self.command, chunk) {
            (_, ChunkType::NONE) => length == 0,
            (CommandType::READ, ChunkType::OFFSET_DATA) => length > 8 && length - 8 <= self.length,
            (CommandType::READ, ChunkType::OFFSET_HOLE) => length == 12,
            (CommandType::BLOCK_STATUS, ChunkType::BLOCK_STATUS) => {
                (12..=4 + 8 * wire_length(MAX_EXTENTS)).contains(&length) && length % 8 == 4
            }
            (_, ChunkType::ERROR_OFFSET) => (14..=MAX_ERROR_LENGTH).contains(&length),
            (_, error) if error.is_error() => (6..=MAX_ERROR_LENGTH).contains(&length),
            (command, chunk) => return Err(TransmissionError::UnexpectedChunk { command, chunk }),
        };
        if fits {
            Ok(())
        } else {
            Err(TransmissionError::ChunkLength { chunk, length })
        }
    }

    /// Takes note of a content chunk that covers `length` bytes at `offset`.
    pub(super) fn add_content(
        &mut self,
        chunk: ChunkType,
        offset: u64,
        length: u32,
    ) -> Result<(), TransmissionError> {
        let start = self.relative(offset);
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end.filter(|&end| end <= self.length)) else {
            return Err(TransmissionError::OutOfRange {
                chunk,
                offset,
                length,
            });
        };
        if self.has_content && self.flags.contains(CommandFlags::DF) {
            return Err(TransmissionError::Fragmented);
        }
        self.has_content = true;
        self.coverage.add(start, end).map_err(|error| match error {
            CoverageError::Overlap => TransmissionError::Overlap { offset, length },
            CoverageError::TooManyRanges => TransmissionError::TooManyGaps { limit: MAX_RANGES },
        })
    }

    /// The extents of a status chunk, cut at the end of an export of `size` bytes.
    pub(super) fn add_status(
        &mut self,
        payload: &[u8],
        context: Option<u32>,
        size: u64,
    ) -> Result<Vec<Extent>, TransmissionError> {
        let (id, descriptors) = payload
            .as_chunks::<4>()
            .0
            .split_first()
            .unwrap_or((&[0; 4], &[]));
        let id = u32::from_be_bytes(*id);
        if Some(id) != context {
            return Err(TransmissionError::UnknownContext(id));
        }
        if self.has_status {
            return Err(TransmissionError::RepeatedStatus);
        }
        self.has_status = true;
        let mut extents: Vec<Extent> = descriptors
            .as_flattened()
            .as_chunks::<8>()
            .0
            .iter()
            .map(|descriptor| Extent {
                length: u32_at(descriptor, 0),
                flags: ExtentFlags::from_bits_truncate(u32_at(descriptor, 4)),
            })
            .collect();
        self.check_extents(&extents)?;
        cut(&mut extents, size - self.offset);
        Ok(extents)
    }

    fn check_extents(&self, extents: &[Extent]) -> Result<(), TransmissionError> {
        if extents.iter().any(|extent| extent.length == 0) {
            return Err(TransmissionError::EmptyExtent);
        }
        let sum = |extents: &[Extent]| extents.iter().map(|e| u64::from(e.length)).sum::<u64>();
        let asked = u64::from(self.length);
        let excess = if self.flags.contains(CommandFlags::REQ_ONE) {
            extents.len() > 1 || sum(extents) > asked
        } else {
            extents
                .split_last()
                .is_some_and(|(_, others)| sum(others) >= asked)
        };
        if excess {
            Err(TransmissionError::ExcessExtents)
        } else {
            Ok(())
        }
    }

    /// Takes note of the error of a simple reply.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.failure = Some(errno.into());
    }

    /// Takes note of an error chunk; the first one is what the request ends with.
    pub(super) fn add_error(
        &mut self,
        chunk: ChunkType,
        payload: &[u8],
    ) -> Result<(), TransmissionError> {
        self.errors += 1;
        if self.errors > MAX_ERROR_CHUNKS {
            return Err(TransmissionError::TooManyErrors {
                limit: MAX_ERROR_CHUNKS,
            });
        }
        let length = wire_length(payload.len());
        let ErrorChunk {
            error,
            message,
            offset,
        } = ErrorChunk::parse(chunk, payload)
            .ok_or(TransmissionError::ChunkLength { chunk, length })?;
        if error == 0 {
            return Err(TransmissionError::ZeroError);
        }
        if let Some(offset) = offset
            && self.relative(offset).is_none_or(|at| at >= self.length)
        {
            return Err(TransmissionError::OutOfRange {
                chunk,
                offset,
                length: 0,
            });
        }
        self.failure
            .get_or_insert_with(|| Failure::new(Errno::from_wire(error), display_text(message)));
        Ok(())
    }

    /// Whether all content of a READ is announced, and nothing failed.
    pub(super) fn has_succeeded(&self) -> bool {
        self.failure.is_none() && self.coverage.covered() == self.length
    }

    /// How the request ends, now that its last chunk has come.
    pub(super) fn finish(self) -> Result<Result<(), Failure>, TransmissionError> {
        if let Some(failure) = self.failure {
            return Ok(Err(failure));
        }
        match self.command {
            CommandType::READ if self.coverage.covered() < self.length => {
                let missing = self.length - self.coverage.covered();
                Err(TransmissionError::MissingData { missing })
            }
            CommandType::BLOCK_STATUS if !self.has_status => Err(TransmissionError::MissingStatus),
            _ => Ok(Ok(())),
        }
    }

    /// `offset` from the beginning of the request.
    fn relative(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset.checked_sub(self.offset)?).ok()
    }
}

/// The payload of an error chunk.
struct ErrorChunk<'a> {
    error: u32,
    message: &'a [u8],
    /// Of `NBD_REPLY_TYPE_ERROR_OFFSET`.
    offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// `None` if the payload is too short for what it should hold, or its message too long.
    fn parse(chunk: ChunkType, payload: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = payload.split_first_chunk::<6>()?;
        let (message, rest) = rest.split_at_checked(usize::from(u16_at(fixed, 4)))?;
        let offset = match chunk {
            ChunkType::ERROR_OFFSET => Some(u64_at(rest.first_chunk::<8>()?, 0)),
            _ => None,
        };
        let fits = message.len() <= MAX_STRING_LENGTH;
        fits.then_some(Self {
            error: u32_at(fixed, 0),
            message,
            offset,
        })
    }
}

/// Cuts extents so that they cover at most `limit` bytes.
fn cut(extents: &mut Vec<Extent>, mut limit: u64) {
    extents.retain_mut(|extent| {
        extent.length = u32::try_from(limit).unwrap_or(u32::MAX).min(extent.length);
        limit -= u64::from(extent.length);
        extent.length > 0
    });
}
