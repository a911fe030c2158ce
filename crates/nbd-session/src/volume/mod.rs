//! A disk.
#![allow(unused_variables, missing_docs)]
mod geometry;
pub use geometry::{Geometry, SECTOR};
use crate::*;
use bytes::Bytes;
use nbd::Command;
use nbd::wire::CommandFlags;
use std::time::Instant;
/// A disk.
#[derive(Debug)]
pub struct Volume {}
impl Volume {
    pub fn new(session: Session) -> Self { todo!() }
    pub fn open_link(&mut self, now: Instant, kind: LinkKind) -> LinkId { todo!() }
    pub fn handle_data(&mut self, now: Instant, link: LinkId, data: Bytes) { todo!() }
    pub fn handle_text(&mut self, now: Instant, link: LinkId, text: &str) { todo!() }
    pub fn handle_alive(&mut self, now: Instant, link: LinkId) { todo!() }
    pub fn handle_closed(&mut self, now: Instant, link: LinkId, closing: Closing) { todo!() }
    pub fn submit(&mut self, now: Instant, request: RequestId, flags: CommandFlags, command: Command) { todo!() }
    pub fn set_device(&mut self, now: Instant, phase: DevicePhase, device: Option<String>) { todo!() }
    pub fn drain(&mut self, now: Instant, reason: EndReason) { todo!() }
    pub fn end(&mut self, now: Instant, reason: EndReason) { todo!() }
    pub fn poll_timeout(&self) -> Option<Instant> { todo!() }
    pub fn handle_timeout(&mut self, now: Instant) { todo!() }
    pub fn poll_output(&mut self) -> Option<Output> { todo!() }
    pub fn geometry(&self) -> Option<&Geometry> { todo!() }
    pub fn image(&self) -> Option<ImageInfo> { todo!() }
    pub fn is_ended(&self) -> bool { todo!() }
}
