//! The Network Block Device protocol without I/O: both sides of the handshake and of transmission.
//!
//! The reference is [`doc/proto.md`][proto] of the NetworkBlockDevice/nbd repository; section names
//! in these pages are its section names. What is spoken is fixed newstyle negotiation with
//! structured replies and the `base:allocation` metadata context. Extended headers are refused in the
//! way the document asks for, and so is TLS, unless [`server::Handshake::requiring_tls`] insists on it.
//!
//! Nothing here reads a socket, a file or a clock. Every state machine takes what arrived with
//! `handle_input`, and hands out what happened and what is to be sent with `poll_*` methods and
//! `out` parameters:
//!
//! 1. give every message or socket read to `handle_input`;
//! 2. call the `poll_*` methods until they return `None`;
//! 3. send the output in its order.
//!
//! Input may be split anywhere. Payload bytes are slices of the input and are handed on without a
//! copy; memory is never allocated because a length field announced something, but only for what
//! has arrived. An error of `handle_input` or `poll_*` means that the peer broke the protocol: the
//! connection cannot be used any more.
//!
//! ```
//! use bytes::Bytes;
//! use nbd::client::{Handshake, HandshakeOptions, ReplyEvent};
//! use nbd::{Command, wire::CommandFlags};
//!
//! let mut handshake = Handshake::new(HandshakeOptions::default());
//! // What a server of the simplest kind sends: its greeting, and its answers to two options.
//! handshake.handle_input(Bytes::from_static(b"NBDMAGICIHAVEOPT\0\x03"))?;
//! let unsupported = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\x80\0\0\x01\0\0\0\0";
//! handshake.handle_input(Bytes::from_static(unsupported))?;
//! handshake.handle_input(Bytes::from_static(b"\0\0\0\0\0\0\x02\0\0\x03"))?;
//! while let Some(bytes) = handshake.poll_output() {
//!     // Send `bytes` to the server.
//! }
//! let (export, mut transmission) = handshake.finish().expect("the server agreed");
//! assert_eq!((export.size, export.is_read_only()), (512, true));
//!
//! let mut out = Vec::new();
//! let read = Command::Read { offset: 0, length: 5 };
//! transmission.request(1, CommandFlags::empty(), &read, &mut out)?;
//! // Send `out`, and take the reply.
//! transmission.handle_input(Bytes::from_static(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01Hello"));
//! let data = Bytes::from_static(b"Hello");
//! let read = ReplyEvent::Data { cookie: 1, offset: 0, data, certain: true };
//! assert_eq!(transmission.poll_reply()?, Some(read));
//! assert_eq!(transmission.poll_reply()?, Some(ReplyEvent::Done { cookie: 1, result: Ok(()) }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
pub use text::{InvalidString, printable};
