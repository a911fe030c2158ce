//! How much a session may ask of its link, besides what the link carries.
//!
//! Whoever runs many sessions may let them take turns, by what they are allowed to send. Small reads need no allowance:
//! the machine waits for them one by one.

use std::time::Instant;

use nbd::Command;

use super::Session;
use super::flight::is_long;
use super::link::Link;

impl Session {
    /// From now on, requests that put more than 16 KiB on their way are sent as far as `bytes` reach; the last of them
    /// is sent whole. None: as far as the link carries them, which holds at first. Later links inherit it.
    pub fn allow(&mut self, now: Instant, bytes: Option<u64>) {
        self.allowance = bytes;
        self.pump(now);
    }

    /// What is left of the allowance, in bytes; None: it has no end.
    pub fn allowance(&self) -> Option<u64> {
        self.allowance
    }

    /// What the first request takes, in bytes, that waits for nothing but an allowance.
    pub fn needs_allowance(&self) -> Option<u64> {
        let link = self.link.as_ref().filter(|link| link.is_serving())?;
        let command = &self.requests.first_waiting()?.command;
        let waits = !self.is_allowed(link, command) && link.fits(command, &self.config);
        waits.then(|| link.cost(command))
    }

    /// Whether requests that needed an allowance are on their way.
    pub fn uses_allowance(&self) -> bool {
        self.link.as_ref().is_some_and(Link::has_long)
    }

    pub(super) fn is_allowed(&self, link: &Link, command: &Command) -> bool {
        self.allowance != Some(0) || !is_long(link.cost(command))
    }

    /// A request of the device was sent.
    pub(super) fn spend(&mut self, cost: u64) {
        if let Some(allowance) = self.allowance.as_mut().filter(|_| is_long(cost)) {
            *allowance = allowance.saturating_sub(cost);
        }
    }
}
