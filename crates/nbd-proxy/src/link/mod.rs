//! Links: one connection each to whoever serves the image. A link moves bytes and knows nothing of NBD.

pub(crate) mod events;
pub(crate) mod stdio;
#[cfg(feature = "serve")]
pub(crate) mod websocket;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(crate) use events::Events;
pub(crate) use nbd_session::{Closing, LinkKind, close::IN_USE};

/// What a link reports.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Bytes of the NBD stream, in order; their borders mean nothing.
    Data(Bytes),
    /// One text message of a `v=1` link.
    Text(String),
    /// Nothing but a sign of life: some bytes came, be they a pong or a part of a message.
    Alive,
    /// The last event. A link whose event channel closes without it counts as lost.
    Closed(Closing),
}

/// What a link is told.
#[derive(Debug)]
pub(crate) enum LinkCommand {
    /// Bytes of the NBD stream, in order.
    Data(Bytes),
    /// One text message of a `v=1` link.
    Text(String),
    /// Its peer has shown the session's image: a message may be as long as the answers that it will be asked for. Plain
    /// byte streams have no messages.
    Trust,
    /// Send what is queued, then close. Plain byte streams have no place for the code and the reason.
    Close {
        /// Status code of the WebSocket close frame.
        code: u16,
        /// At most 123 bytes, for people.
        reason: String,
    },
    /// The same from outside the session, for which the link is lost.
    Cut {
        /// Status code of the WebSocket close frame.
        code: u16,
        /// At most 123 bytes, for people.
        reason: String,
    },
}

/// One connection to whoever serves the image, as its attachment sees it.
///
/// Dropping it closes the connection: the command channel ends.
#[derive(Debug)]
pub(crate) struct Link {
    /// Whether text messages are spoken.
    pub(crate) kind: LinkKind,
    /// From the peer.
    pub(crate) events: Events,
    /// To the peer. Unbounded because the session bounds it: requests carry no payload to a read-only image, and what
    /// is in flight is limited.
    pub(crate) commands: mpsc::UnboundedSender<LinkCommand>,
    /// Who is at its other end.
    pub(crate) peer: Peer,
}

/// Who is at the other end of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// `local`, or empty where nobody asked (standard input).
    pub(crate) user: String,
    /// Where that is, for people: `127.0.0.1:4711`, `standard input`.
    pub(crate) from: String,
    /// The session's ID that a `v=1` link carries in its address.
    pub(crate) session: Option<String>,
}
