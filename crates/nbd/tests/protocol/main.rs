//! The protocol as its peers see it: transcripts, both sides joined in memory, and peers that break
//! each rule in turn.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod client_handshake;
mod client_hostile;
mod client_transmission;
mod joined;
mod messages;
mod server_handshake;
mod server_tls;
mod server_transmission;
mod wire;
