//! The task that keeps one link.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_websockets::Message;

use super::{Accepted, Counted, Socket, Step};
use crate::link::{Closing, LinkCommand, LinkEvent, LinkKind, events::Sender};

/// How often we ping at least: a hidden page's timers sleep, its WebSocket answers all the same.
const PING: Duration = Duration::from_secs(5);
/// How often we look whether bytes came of a message that is not complete.
const TICK: Duration = Duration::from_secs(1);
/// How many commands are obeyed before the others get a turn.
const BATCH: usize = 64;

/// What is said to the peer before the connection is closed.
struct Farewell {
    code: u16,
    reason: String,
}

/// What moves the messages of one link.
pub(super) struct Keeper<S> {
    socket: Socket<Counted<S>>,
    kind: LinkKind,
    events: Sender,
    commands: mpsc::UnboundedReceiver<LinkCommand>,
    silence: Duration,
    /// The longest message once the link is trusted, in bytes.
    longest: usize,
    /// Bytes that came.
    received: Arc<AtomicU64>,
    /// As many as had come when we looked last.
    counted: u64,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Keeper<S> {
    pub(super) fn new(
        accepted: Accepted<S>,
        kind: LinkKind,
        silence: Duration,
        events: Sender,
        commands: mpsc::UnboundedReceiver<LinkCommand>,
    ) -> Self {
        Self {
            socket: accepted.socket,
            kind,
            events,
            commands,
            silence,
            longest: accepted.longest,
            received: accepted.received,
            counted: 0,
            heard: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let (closing, farewell) = self.keep().await;
        // Told at once, not after the closing handshake, so that a held session waits for its next link already.
        let _ = self.events.send(LinkEvent::Closed(closing)).await;
        match farewell {
            Some(Farewell { code, reason }) => self.socket.close(code, &reason).await,
            None => self.socket.part().await,
        }
    }

    /// Moves messages until the link ends; then says how it ended for the session, and what is to be said to the peer.
    async fn keep(&mut self) -> (Closing, Option<Farewell>) {
        let mut pings = interval(PING.min(self.silence / 3));
        let mut ticks = interval(TICK.min(self.silence / 3));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                step = self.socket.step() => match step {
                    Step::Sent => {}
                    Step::Received(message) => {
                        if let Err(farewell) = self.deliver(message).await {
                            return (Closing::Lost(farewell.reason.clone()), Some(farewell));
                        }
                    }
                    Step::Closed(end) => return (end.closing(), None),
                },
                count = self.commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        let reason = "the session is over".to_owned();
                        return (Closing::Clean, Some(Farewell { code: 1001, reason }));
                    }
                    let end = batch.drain(..).find_map(|command| self.obey(command));
                    if let Some((closing, farewell)) = end {
                        return (closing, Some(farewell));
                    }
                }
                _ = pings.tick() => self.socket.push(Message::ping(Bytes::new())),
                _ = ticks.tick() => {
                    self.listen().await;
                    if self.kind == LinkKind::Plain && self.heard.elapsed() >= self.silence {
                        let cause = format!("silent for {} s", self.silence.as_secs());
                        return (Closing::Lost(cause), None);
                    }
                }
            }
        }
    }

    /// Notes whether any bytes came since we looked last.
    async fn listen(&mut self) {
        let received = self.received.load(Ordering::Relaxed);
        if received != self.counted {
            self.counted = received;
            self.heard = Instant::now();
            let _ = self.events.send(LinkEvent::Alive).await;
        }
    }

    async fn deliver(&mut self, message: Message) -> Result<(), Farewell> {
        let event = if message.is_binary() {
            LinkEvent::Data(message.into_payload().into())
        } else if let Some(text) = message.as_text() {
            if self.kind == LinkKind::Plain {
                let reason = "a plain link carries binary messages only".to_owned();
                return Err(Farewell { code: 1003, reason });
            }
            LinkEvent::Text(text.to_owned())
        } else {
            // A ping or pong: its bytes are counted.
            return Ok(());
        };
        // Fails when the attachment has dropped the link; then `commands` ends as well.
        let _ = self.events.send(event).await;
        Ok(())
    }

    /// What follows when the link is to end.
    fn obey(&mut self, command: LinkCommand) -> Option<(Closing, Farewell)> {
        match command {
            LinkCommand::Data(data) => self.socket.push_data(data),
            LinkCommand::Text(text) => self.socket.push(Message::text(text)),
            LinkCommand::Trust => self.socket.allow(self.longest),
            LinkCommand::Close { code, reason } => {
                return Some((Closing::Clean, Farewell { code, reason }));
            }
            LinkCommand::Cut { code, reason } => {
                return Some((Closing::Lost(reason.clone()), Farewell { code, reason }));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::link::{
        Peer,
        websocket::{accept, link},
    };

    /// A client's frame of at most 125 bytes, masked with zeros.
    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        let length = 0x80 | u8::try_from(payload.len()).unwrap();
        [&[head, length, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test]
    async fn who_breaks_a_rule_of_websocket_is_told_before_the_connection_ends() {
        for (sent, code) in [
            (frame(0x83, b""), 1002),
            // Compressed, which nobody has agreed on.
            (frame(0xc2, b"bomb"), 1002),
            (frame(0x81, b"\xff"), 1007),
            (vec![0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0], 1009),
        ] {
            let (server, mut client) = duplex(4096);
            let (_link, keeper) = link(
                accept(server, 0),
                LinkKind::V1,
                Peer::default(),
                Duration::from_secs(15),
            );
            client.write_all(&sent).await.unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            keeper.await.unwrap();
            // Behind our first ping: a close frame with its length and code.
            let close = received.iter().position(|byte| *byte == 0x88).unwrap();
            assert_eq!(
                received[close + 2..close + 4],
                u16::to_be_bytes(code),
                "{received:?}"
            );
        }
    }
}
