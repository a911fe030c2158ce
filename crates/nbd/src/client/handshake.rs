//! The client's handshake.

use bytes::Bytes;

use super::{HandshakeError, Transmission};
use crate::export::Export;

/// What to ask a server for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandshakeOptions {
    /// The export's name; empty for the default export.
    pub export: String,
    /// Ask for structured replies.
    pub structured_replies: bool,
    /// Ask for `base:allocation`; needs structured replies.
    pub base_allocation: bool,
}

/// The handshake of a new connection, from the client's side.
#[derive(Debug)]
pub struct Handshake {}

#[allow(unused_variables)]
impl Handshake {
    /// Begins; the server speaks first.
    pub fn new(options: HandshakeOptions) -> Self {
        todo!()
    }

    /// Takes what arrived.
    pub fn handle_input(&mut self, input: Bytes) -> Result<(), HandshakeError> {
        todo!()
    }

    /// What is to be sent next.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        todo!()
    }

    /// The export and its transmission, once, when the server agreed.
    pub fn finish(&mut self) -> Option<(Export, Transmission)> {
        todo!()
    }
}
