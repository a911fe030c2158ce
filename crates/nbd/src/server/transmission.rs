//! The server's transmission.

use bytes::Bytes;

use super::TransmissionError;
use crate::command::{Command, Failure, Reply};
use crate::export::{Export, Negotiated};
use crate::wire::CommandFlags;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A request that keeps all rules: to be carried out and answered.
    Request {
        /// To be given to [`Transmission::reply`].
        reply_to: ReplyTo,
        /// How to do it.
        flags: CommandFlags,
        /// What to do.
        command: Command,
    },
    /// A request that breaks a rule: to be answered with the failure.
    Refused {
        /// To be given to [`Transmission::reply`].
        reply_to: ReplyTo,
        /// What to answer.
        failure: Failure,
    },
    /// `NBD_CMD_DISC`: answer what is outstanding, then close. Nothing follows.
    Disconnect,
}

/// The right to answer one request once.
#[derive(Debug, PartialEq, Eq)]
pub struct ReplyTo {}

/// Requests and replies, from the server's side.
#[derive(Debug)]
pub struct Transmission {}

#[allow(unused_variables)]
impl Transmission {
    /// Transmission without a handshake of this crate, as with the kernel's NBD driver.
    pub fn new(export: &Export, negotiated: Negotiated) -> Self {
        todo!()
    }

    /// Takes what arrived; to be followed by [`Self::poll_request`] until it gives `None`.
    pub fn handle_input(&mut self, input: Bytes) {
        todo!()
    }

    /// The next thing the client sent.
    pub fn poll_request(&mut self) -> Result<Option<Incoming>, TransmissionError> {
        todo!()
    }

    /// Appends the bytes of a reply to `out`.
    pub fn reply(
        &mut self,
        reply_to: ReplyTo,
        result: Result<Reply, Failure>,
        out: &mut Vec<Bytes>,
    ) {
        todo!()
    }

    /// What was agreed on with the client.
    pub fn negotiated(&self) -> Negotiated {
        todo!()
    }
}
