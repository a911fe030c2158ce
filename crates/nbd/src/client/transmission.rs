//! The client's transmission.

use bytes::Bytes;

use super::{RequestError, TransmissionError};
use crate::command::{Command, Extent, Failure};
use crate::export::Negotiated;
use crate::wire::CommandFlags;

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
    /// The extents of a BLOCK_STATUS, from its offset on.
    BlockStatus {
        /// Of the request.
        cookie: u64,
        /// At least one.
        extents: Vec<Extent>,
    },
    /// The request is answered; nothing follows for this cookie.
    Done {
        /// Of the request.
        cookie: u64,
        /// Data events of a READ that failed mean nothing.
        result: Result<(), Failure>,
    },
}

/// Requests and replies, from the client's side.
#[derive(Debug)]
pub struct Transmission {}

#[allow(unused_variables)]
impl Transmission {
    /// Appends the bytes of a request to `out`.
    pub fn request(
        &mut self,
        cookie: u64,
        flags: CommandFlags,
        command: &Command,
        out: &mut Vec<Bytes>,
    ) -> Result<(), RequestError> {
        todo!()
    }

    /// Appends `NBD_CMD_DISC` to `out`; no request may follow.
    pub fn disconnect(&mut self, out: &mut Vec<Bytes>) {
        todo!()
    }

    /// Takes what arrived; to be followed by [`Self::poll_reply`] until it gives `None`.
    pub fn handle_input(&mut self, input: Bytes) {
        todo!()
    }

    /// The next thing the server answered.
    pub fn poll_reply(&mut self) -> Result<Option<ReplyEvent>, TransmissionError> {
        todo!()
    }

    /// Requests that wait for their `Done`.
    pub fn outstanding(&self) -> usize {
        todo!()
    }

    /// What was agreed on with the server.
    pub fn negotiated(&self) -> Negotiated {
        todo!()
    }
}
