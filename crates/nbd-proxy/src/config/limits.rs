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
    /// Of these, links of one user.
    pub(crate) links_per_user: usize,
    /// Streams of events.
    pub(crate) events: usize,
    /// Of these, streams to one user.
    pub(crate) events_per_user: usize,
    /// Sessions.
    pub(crate) sessions: usize,
    /// What all sessions together may have in memory, in bytes: at least [`LEAST_MEMORY`] for each.
    pub(crate) memory: u64,
}

/// What one session may have in memory in any case, in bytes.
pub(crate) const LEAST_MEMORY: u64 = 8 << 20;
/// What all sessions together may have in memory unless told, in bytes.
const USUAL_MEMORY: u64 = 1 << 30;

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 768,
            connections_per_address: 128,
            links: 256,
            links_per_user: 128,
            events: 128,
            events_per_user: 64,
            sessions: 64,
            memory: USUAL_MEMORY,
        }
    }
}

/// The most that any of them may be: what a process can have open is limited as well.
const MOST: u64 = 1 << 16;

fn read_memory(members: &mut Section<'_, '_>, sessions: usize) -> Result<u64, String> {
    let least = LEAST_MEMORY * u64::try_from(sessions).unwrap_or(MOST);
    match members.integer("memory")? {
        None => Ok(USUAL_MEMORY.max(least)),
        Some(bytes) if bytes >= least => Ok(bytes),
        Some(_) => Err(members.about(
            "memory",
            &format!(
                "must be {least} bytes or more, 8 MiB for each of {sessions} \"sessions\"; allow fewer of them, or more memory"
            ),
        )),
    }
}

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
    let sessions = read("sessions", usual.sessions)?;
    let limits = ServeLimits {
        connections: read("connections", usual.connections)?,
        connections_per_address: read("connections-per-address", usual.connections_per_address)?,
        links: read("links", usual.links)?,
        links_per_user: read("links-per-user", usual.links_per_user)?,
        events: read("events", usual.events)?,
        events_per_user: read("events-per-user", usual.events_per_user)?,
        sessions,
        memory: read_memory(&mut members, sessions)?,
    };
    members.finish()?;
    Ok(limits)
}
