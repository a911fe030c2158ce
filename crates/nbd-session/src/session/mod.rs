//! One image, kept reachable.
#![allow(unused_variables, missing_docs)]
mod config;
pub use config::{Closing, LinkId, LinkKind, Output, RequestId, SessionConfig, SessionEvent};
/// One image.
#[derive(Debug)]
pub struct Session {}
impl Session {
    pub fn new(config: SessionConfig) -> Self { todo!() }
}
