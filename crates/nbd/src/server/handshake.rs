//! The server's handshake.

use bytes::Bytes;

use super::{HandshakeError, Transmission};
use crate::export::Export;

/// Bounds on what a client may ask before transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// How many options.
    pub options: u32,
    /// The longest data of an option that is looked at, in bytes; longer ones are skipped with `NBD_REP_ERR_TOO_BIG`.
    pub option_length: u32,
    /// All bytes of the handshake.
    pub total: u64,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            options: 256,
            option_length: 64 * 1024,
            total: 4 * 1024 * 1024,
        }
    }
}

/// How haggling ended.
#[derive(Debug)]
pub enum HandshakeEvent {
    /// The client sent `NBD_OPT_ABORT`: close once the output is sent.
    Aborted,
    /// Transmission begins; bytes that already arrived are in it.
    Transmission {
        /// The export that the client chose.
        export: Export,
        /// Takes it from here.
        transmission: Transmission,
    },
}

/// The handshake of a new connection, from the server's side.
#[derive(Debug)]
pub struct Handshake {}

#[allow(unused_variables)]
impl Handshake {
    /// Begins; the greeting is already waiting in [`Self::poll_output`]. The first export is the default one, unless
    /// another has the empty name.
    pub fn new(exports: Vec<Export>, limits: HandshakeLimits) -> Self {
        todo!()
    }

    /// Takes what arrived. After an error, send what [`Self::poll_output`] still has, and close.
    pub fn handle_input(&mut self, input: Bytes) -> Result<(), HandshakeError> {
        todo!()
    }

    /// What is to be sent next.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        todo!()
    }

    /// How it ended, once.
    pub fn poll_event(&mut self) -> Option<HandshakeEvent> {
        todo!()
    }
}
