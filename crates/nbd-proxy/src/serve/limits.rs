//! Limits on what the server takes on, and the sentence for those who come too late.

use std::{fmt, time::Duration};

/// How long those are asked to wait who come too late.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// A key of `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Connections,
    ConnectionsPerAddress,
    Links,
    LinksPerUser,
    Events,
    EventsPerUser,
    Sessions,
}

impl Limit {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections-per-address",
            Self::Links => "links",
            Self::LinksPerUser => "links-per-user",
            Self::Events => "events",
            Self::EventsPerUser => "events-per-user",
            Self::Sessions => "sessions",
        }
    }
}

/// A limit that leaves no room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) limit: Limit,
    /// What it is.
    pub(super) most: usize,
}

impl fmt::Display for Reached {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.limit {
            Limit::Connections => "connections",
            Limit::ConnectionsPerAddress => "connections from your address",
            Limit::Links => "links",
            Limit::LinksPerUser => "links of yours",
            Limit::Events => "event streams",
            Limit::EventsPerUser => "event streams of yours",
            Limit::Sessions => "sessions",
        };
        write!(
            formatter,
            "too many {what}: {} is the limit; end some, or raise \"{}\" in \"serve.limits\"",
            self.most,
            self.limit.key()
        )
    }
}
