//! Requests and replies, from the client's side (proto.md, "Transmission").

use bytes::Bytes;

use super::pending::Pending;
use super::replies::Replies;
use super::{RequestError, TransmissionError};
use crate::command::{Command, Extent, Failure};
use crate::export::{Export, Negotiated};
use crate::input::Input;
use crate::rules::Rules;
use crate::wire::{CommandFlags, CommandType, RequestHeader};

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    /// Bytes of a READ, as they arrive.
    Data {
        /// Of the request.
        cookie: u64,
        /// Where the bytes belong, from the beginning of the export.
        offset: u64,
        /// At least one byte; a slice of the input.
        data: Bytes,
        /// Whether nothing can take these bytes back: the request has succeeded but for what of
        /// its last chunk is still on its way. A server may report an error in the midst of data
        /// that it sent in an earlier chunk.
        certain: bool,
    },
    /// A range of a READ that is all zeroes.
    Hole {
        /// Of the request.
        cookie: u64,
        /// Where it begins, from the beginning of the export.
        offset: u64,
        /// In bytes, at least 1.
        length: u32,
    },
    /// The extents of a BLOCK_STATUS, from its offset on; they may cover less than was asked, or
    /// more, but end with the export.
    BlockStatus {
        /// Of the request.
        cookie: u64,
        /// At least one.
        extents: Vec<Extent>,
    },
    /// The request is answered; nothing follows for this cookie.
    ///
    /// A READ that succeeded has had each of its bytes exactly once, as data or as a hole, in any
    /// order. What came for a READ that failed means nothing.
    Done {
        /// Of the request.
        cookie: u64,
        /// What the server made of it.
        result: Result<(), Failure>,
    },
}

/// Requests and replies, from the client's side.
#[derive(Debug)]
pub struct Transmission {
    rules: Rules,
    replies: Replies,
    disconnected: bool,
}

impl Transmission {
    /// Transmission after a handshake that left `input` unread.
    pub(super) fn new(
        export: &Export,
        negotiated: Negotiated,
        meta_context: Option<u32>,
        input: Input,
    ) -> Self {
        Self {
            rules: Rules::new(export, negotiated),
            replies: Replies::new(
                export.size,
                negotiated.structured_replies,
                meta_context,
                input,
            ),
            disconnected: false,
        }
    }

    /// Appends the bytes of a request to `out`: a header, and for WRITE the parts of its data.
    ///
    /// The cookie must differ from those of all outstanding requests. On an error nothing is
    /// appended, and nothing has changed.
    pub fn request(
        &mut self,
        cookie: u64,
        flags: CommandFlags,
        command: &Command,
        out: &mut Vec<Bytes>,
    ) -> Result<(), RequestError> {
        if self.disconnected {
            return Err(RequestError::Disconnected);
        }
        let (offset, length) = (command.offset(), command.length());
        self.rules
            .check(flags.bits(), command.command_type(), offset, length)?;
        let pending = Pending::new(flags, command);
        let header = RequestHeader {
            flags: flags.bits(),
            command: pending.command,
            cookie,
            offset,
            length: pending.length,
        };
        if !self.replies.expect(cookie, pending) {
            return Err(RequestError::CookieInUse(cookie));
        }
        out.push(Bytes::copy_from_slice(&header.to_bytes()));
        if let Command::Write { data, .. } = command {
            out.extend_from_slice(data.parts());
        }
        Ok(())
    }

    /// Appends `NBD_CMD_DISC` to `out`; no request can follow. Replies to outstanding requests may
    /// still come until the server closes.
    pub fn disconnect(&mut self, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.disconnected, true) {
            let command = CommandType::DISC;
            let header = RequestHeader {
                flags: 0,
                command,
                cookie: 0,
                offset: 0,
                length: 0,
            };
            out.push(Bytes::copy_from_slice(&header.to_bytes()));
        }
    }

    /// Takes what arrived; to be followed by [`Self::poll_reply`] until it gives `None`.
    pub fn handle_input(&mut self, input: Bytes) {
        self.replies.handle_input(input);
    }

    /// The next thing the server answered; `None` until more has arrived.
    pub fn poll_reply(&mut self) -> Result<Option<ReplyEvent>, TransmissionError> {
        self.replies.poll()
    }

    /// Requests that wait for their [`ReplyEvent::Done`].
    pub fn outstanding(&self) -> usize {
        self.replies.outstanding()
    }

    /// What was agreed on with the server.
    pub fn negotiated(&self) -> Negotiated {
        self.rules.negotiated
    }
}
