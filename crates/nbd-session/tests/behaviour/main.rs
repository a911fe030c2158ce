//! What a session promises, one thing at a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod allocations;
mod allowance;
mod bench;
mod disk;
mod ends;
mod keep;
mod line;
mod links;
mod reading;
mod restart;
mod resume;
mod takeover;
mod writes;
