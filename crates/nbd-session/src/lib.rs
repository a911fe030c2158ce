//! Keeps one remote image reachable as a disk while its links come and go, without I/O and without a clock.
//!
//! ```text
//!   link  ◀─ bytes, text ─  Session  ◀─ requests within the image ─  Volume  ◀─ requests of any range ─  device
//! ```
//!
//! [`Session`] is the NBD client: handshake on each link, requests in flight, what happens when a link is lost
//! (hold, compare the image, replay writes, ask again), and the end. [`Volume`] owns it and makes the image behave
//! like a disk: whole sectors, requests of any length, every command that a device may send. It may keep a copy of
//! the image, in a store that the caller has.
//!
//! A session may also outlive its process: [`Session::snapshot`] says what another one has to know, and
//! [`Session::restore`] goes on with that.
//!
//! Whoever drives them calls, at any time and in any order, `handle_*`, `submit` and the like with the present time,
//! and after each call takes everything from `poll_output`; it calls `handle_timeout` when the time that
//! `poll_timeout` gives has come. The same calls at the same times give the same outputs.

#![forbid(unsafe_code)]

pub mod control;
mod reason;
mod session;
mod volume;

pub use control::{DevicePhase, DeviceState, ImageInfo, KeepState};
pub use reason::{EndReason, close};
pub use session::{
    Closing, LinkId, LinkKind, Output, RequestId, RestoreError, SMALL_READ, Session, SessionConfig,
    SessionEvent, Snapshot, StoreAction, StoreId,
};
pub use volume::{Geometry, SECTOR, Volume};
