//! The server's side: offers exports to a client, then takes its requests and puts replies on the
//! wire.
//!
//! [`Handshake`] begins with a new connection and ends with a [`Transmission`], which can also be
//! made directly for a peer that needs no handshake: the kernel's NBD driver.

mod error;
mod haggling;
mod handshake;
mod options;
mod reply;
mod transmission;

pub use error::{HandshakeError, TransmissionError};
pub use handshake::{Handshake, HandshakeEvent, HandshakeLimits, StartTls};
pub use transmission::{Incoming, ReplyTo, Transmission};
