//! The client's side: asks a server for an export, then sends requests and checks every byte of the
//! replies.
//!
//! [`Handshake`] begins with a new connection; when [`Handshake::finish`] gives a
//! [`Transmission`], requests may be sent.

mod coverage;
mod error;
mod handshake;
mod info;
mod pending;
mod replies;
mod transmission;

pub use error::{HandshakeError, RequestError, TransmissionError};
pub use handshake::{Handshake, HandshakeOptions};
pub use transmission::{ReplyEvent, Transmission};
