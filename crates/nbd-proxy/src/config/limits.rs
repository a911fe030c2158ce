//! `limits`: how much the web server takes on.

use super::reader::Section;

/// How many there may be at once, each 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServeLimits {
    /// Connections to the listening addresses, links included.
    pub(crate) connections: usize,
    /// Connections from one address; loopback is not counted.
    pub(crate) connections_per_address: usize,
    /// Links, those that are being refused included.
    pub(crate) links: usize,
    /// Streams of events.
    pub(crate) events: usize,
    /// Sessions.
    pub(crate) sessions: usize,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 768,
            connections_per_address: 128,
            links: 256,
            events: 128,
            sessions: 64,
        }
    }
}

/// The most that any of them may be: what a process can have open is limited as well.
const MOST: u64 = 1 << 16;

/// Reads `limits`.
pub(super) fn read(section: &mut Section<'_, '_>) -> Result<ServeLimits, String> {
    let usual = ServeLimits::default();
    let Some(value) = section.take("limits") else {
        return Ok(usual);
    };
    let mut members = section.subsection("limits", value)?;
    let mut read = |key, usual: usize| match members.integer(key)? {
        None => Ok(usual),
        Some(count @ 1..=MOST) => Ok(usize::try_from(count).unwrap_or(usual)),
        Some(_) => Err(members.about(key, &format!("must be 1 to {MOST}"))),
    };
    let limits = ServeLimits {
        connections: read("connections", usual.connections)?,
        connections_per_address: read("connections-per-address", usual.connections_per_address)?,
        links: read("links", usual.links)?,
        events: read("events", usual.events)?,
        sessions: read("sessions", usual.sessions)?,
    };
    members.finish()?;
    Ok(limits)
}
