//! The Network Block Device protocol without I/O: both sides of the handshake and of transmission.
//!
//! The reference is [`doc/proto.md`][proto] of the NetworkBlockDevice/nbd repository; section names in these pages
//! are its section names. What is spoken is fixed newstyle negotiation with structured replies and the
//! `base:allocation` metadata context. TLS and extended headers are refused in the way the document asks for.
//!
//! Nothing here reads a socket, a file or a clock. Every state machine takes what arrived with `handle_input`, and
//! hands out what happened and what is to be sent with `poll_*` methods and `out` parameters:
//!
//! 1. give every message or socket read to `handle_input`;
//! 2. call the `poll_*` methods until they return `None`;
//! 3. send the output in its order.
//!
//! Input may be split anywhere. Payload bytes are slices of the input and are handed on without a copy; memory is
//! never allocated because a length field announced something, but only for what has arrived. An error of
//! `handle_input` or `poll_*` means that the peer broke the protocol: the connection cannot be used any more.
//!
//! [proto]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

#![forbid(unsafe_code)]

pub mod client;
mod command;
mod export;
mod input;
mod payload;
mod rules;
pub mod server;
mod text;
pub mod wire;

pub use command::{Command, Extent, Failure, Reply};
pub use export::{BlockSizes, Export, InvalidBlockSizes, Negotiated};
pub use payload::Payload;
pub use rules::BrokenRule;
pub use text::InvalidString;
