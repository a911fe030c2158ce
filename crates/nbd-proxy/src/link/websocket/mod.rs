//! WebSockets as links: the socket, which reads while it writes, and the task that keeps one link.

mod counted;
mod keeper;
mod socket;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_websockets::{Limits, ServerBuilder};

use super::{Link, LinkKind, Peer, events};
use counted::Counted;
use keeper::Keeper;
pub(crate) use socket::{End, Socket, Step};

/// What a message may carry beside one request's data: reply headers, and what the peer put together.
const MESSAGE_SLACK: usize = 64 << 10;
/// No limit is below this: a peer may gather small replies into one message. While a link has not shown its image there
/// are no others.
const MESSAGE_FLOOR: usize = 256 << 10;
/// How many bytes a link may be ahead of its attachment, unless they are one message. A link may wait long for its turn,
/// and whoever is not asked for anything has little to say.
const AHEAD: u32 = 256 << 10;

/// A server's end of a WebSocket, and how many bytes have come on it.
pub(crate) struct Accepted<S> {
    socket: Socket<Counted<S>>,
    received: Arc<AtomicU64>,
    /// The longest message of a link that is trusted, in bytes.
    longest: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepted<S> {
    /// Closes it without having made a link of it.
    pub(crate) async fn close(self, code: u16, reason: &str) {
        self.socket.close(code, reason).await;
    }
}

/// The server's end of a WebSocket whose handshake is done. A message may carry the answer to the longest request that
/// we make, once we make any, and little more: else the peer would choose how much memory we take.
pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    max_request: u32,
) -> Accepted<S> {
    let longest = usize::try_from(max_request)
        .unwrap_or(usize::MAX)
        .saturating_add(MESSAGE_SLACK)
        .max(MESSAGE_FLOOR);
    let limits = Limits::default().max_payload_len(Some(MESSAGE_FLOOR));
    let received = Arc::new(AtomicU64::new(0));
    let stream = Counted::new(stream, Arc::clone(&received));
    Accepted {
        socket: Socket::new(ServerBuilder::new().limits(limits).serve(stream)),
        received,
        longest,
    }
}

/// Makes a link of a socket, kept by a task of its own, which ends with the connection. A plain link whose peer is
/// silent for as long as `silence` is lost; of a `v=1` link the session decides.
pub(crate) fn link<S>(
    accepted: Accepted<S>,
    kind: LinkKind,
    peer: Peer,
    silence: Duration,
) -> (Link, JoinHandle<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (event_sender, events) = events::queue(AHEAD);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let keeper = Keeper::new(accepted, kind, silence, event_sender, command_receiver);
    (
        Link {
            kind,
            events,
            commands,
            peer,
        },
        tokio::spawn(keeper.run()),
    )
}
