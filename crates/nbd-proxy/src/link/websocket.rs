//! WebSockets as links: the socket, which reads while it writes, and the task that keeps one link.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_core::Stream as _;
use futures_sink::Sink as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_websockets::{CloseCode, Error, Limits, Message, ServerBuilder, WebSocketStream};

use super::{Closing, EVENT_QUEUE, Link, LinkCommand, LinkEvent, LinkKind, Peer};

/// How often we ping at least: a hidden page's timers sleep, its WebSocket answers all the same.
const PING: Duration = Duration::from_secs(5);
/// How often we look whether bytes came of a message that is not complete.
const TICK: Duration = Duration::from_secs(1);
/// How long a close frame may wait to be sent and answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a message may carry beside one request's data: reply headers, and what the peer put together.
const MESSAGE_SLACK: usize = 64 << 10;
/// No limit is below this: a peer may gather small replies into one message.
const MESSAGE_FLOOR: usize = 256 << 10;
/// How many bytes of answers to pings may wait for a peer that doesn't read them. While there are more, nothing is read
/// from it either: it would choose how much memory we take.
const PONGS: usize = 64 << 10;
/// Bytes up to this length are joined with their neighbours: a message costs more than such a copy.
const SHORT: usize = 16 << 10;
/// How long a message of joined bytes is at most.
const JOINED: usize = 64 << 10;
/// How many bytes are read ahead of the message that is being decoded, so that a burst of short ones is one system call.
const READ_AHEAD: usize = 16 << 10;
/// How many commands are obeyed before the others get a turn.
const BATCH: usize = 64;
/// Bytes of a frame's head, at most, as we send it.
const FRAME_HEAD: usize = 4;
/// The longest reason of a close frame, bytes (RFC 6455, section 5.5: 125, less the code).
const REASON_LIMIT: usize = 123;

/// What a [`Socket`] has done.
pub(crate) enum Step {
    /// A message was handed to the connection; there is room for another.
    Sent,
    /// A message came.
    Received(Message),
    /// The last step: there is no connection any more.
    Closed(End),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Of the peer's close frame; 1005 where that had none, 1006 where there was no close frame.
    pub(crate) code: u16,
    /// What the peer said, or else what happened.
    pub(crate) reason: String,
}

impl End {
    /// Without a close frame.
    pub(crate) fn broken(cause: impl fmt::Display) -> Self {
        Self {
            code: 1006,
            reason: cause.to_string(),
        }
    }

    /// A clean close ends a session; every other loss holds it.
    fn closing(self) -> Closing {
        match self.code {
            1000 | 1005 => Closing::Clean,
            1006 => Closing::Lost(self.reason),
            code if self.reason.is_empty() => Closing::Lost(format!("closed with code {code}")),
            code => Closing::Lost(format!("closed with code {code}: {}", self.reason)),
        }
    }
}

/// A WebSocket with a queue of messages to send.
pub(crate) struct Socket<S> {
    stream: WebSocketStream<S>,
    queue: VecDeque<Message>,
    /// The end of the queue, which is to be one message.
    joined: BytesMut,
    queued: usize,
    /// Bytes of answers to pings since everything was sent last.
    pongs: usize,
    /// What the peer's close frame said.
    end: Option<End>,
    /// The peer sent a message above the limit.
    too_long: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(crate) fn new(stream: WebSocketStream<S>) -> Self {
        Self {
            stream,
            queue: VecDeque::new(),
            joined: BytesMut::new(),
            queued: 0,
            pongs: 0,
            end: None,
            too_long: false,
        }
    }

    /// Queues a message; [`Socket::step`] sends it.
    pub(crate) fn push(&mut self, message: Message) {
        self.seal();
        self.queued += message.as_payload().len();
        self.queue.push_back(message);
    }

    /// Queues bytes of the NBD stream. Short ones that follow each other become one message.
    pub(crate) fn push_data(&mut self, data: Bytes) {
        if data.len() > SHORT {
            return self.push(Message::binary(data));
        }
        if self.joined.len() + data.len() > JOINED {
            self.seal();
        }
        self.queued += data.len();
        self.joined.extend_from_slice(&data);
    }

    /// What was joined until now is a message.
    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.queue.push_back(Message::binary(self.joined.split()));
        }
    }

    /// How many bytes wait to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Sends and receives until there is something to tell. May be dropped at any time: nothing is lost.
    pub(crate) async fn step(&mut self) -> Step {
        match poll_fn(|context| self.poll_step(context)).await {
            Ok(step) => step,
            Err(error) => {
                self.too_long = matches!(error, Error::PayloadTooLong { .. });
                Step::Closed(self.end.take().unwrap_or_else(|| End::broken(error)))
            }
        }
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Result<Step, Error>> {
        if self.end.is_none() && self.poll_send(context)?.is_ready() {
            return Poll::Ready(Ok(Step::Sent));
        }
        if self.end.is_none() && self.pongs > PONGS {
            return Poll::Pending;
        }
        loop {
            let Some(message) = ready!(Pin::new(&mut self.stream).poll_next(context)?) else {
                let end = self
                    .end
                    .take()
                    .unwrap_or_else(|| End::broken("the connection broke"));
                return Poll::Ready(Ok(Step::Closed(end)));
            };
            match message.as_close() {
                // The stream ends by itself once the answering close frame is out.
                Some((code, reason)) => {
                    self.end = Some(End {
                        code: code.into(),
                        reason: reason.to_owned(),
                    });
                }
                None => {
                    if message.is_ping() {
                        // Answered by the stream itself.
                        self.pongs += FRAME_HEAD + message.as_payload().len();
                    }
                    return Poll::Ready(Ok(Step::Received(message)));
                }
            }
        }
    }

    /// Ready when one more message has left the queue.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.seal();
        let mut stream = Pin::new(&mut self.stream);
        if !self.queue.is_empty() {
            ready!(stream.as_mut().poll_ready(context)?);
            if let Some(message) = self.queue.pop_front() {
                self.queued -= message.as_payload().len();
                stream.start_send(message)?;
                return Poll::Ready(Ok(()));
            }
        }
        ready!(stream.poll_flush(context)?);
        self.pongs = 0;
        Poll::Pending
    }

    /// Sends what is queued, then closes, and waits a short while for the peer to agree.
    pub(crate) async fn close(mut self, code: u16, reason: &str) {
        let code = CloseCode::try_from(code)
            .ok()
            .filter(|code| !code.is_reserved())
            .unwrap_or(CloseCode::GOING_AWAY);
        self.push(Message::close(Some(code), shortened(reason)));
        let _ = timeout(CLOSE_TIMEOUT, async {
            while !matches!(self.step().await, Step::Closed(_)) {}
        })
        .await;
    }

    /// Sends what the stream itself has still to say, such as which rule the peer broke.
    async fn part(mut self) {
        let _ = timeout(CLOSE_TIMEOUT, async {
            if self.too_long {
                self.object_to_length().await;
            }
            while let Some(Ok(_) | Err(Error::PayloadTooLong { .. })) =
                poll_fn(|context| Pin::new(&mut self.stream).poll_next(context)).await
            {}
        })
        .await;
    }

    /// Of a message that is too long only as the sum of its parts the stream itself says nothing.
    async fn object_to_length(&mut self) {
        self.queue.clear();
        self.joined.clear();
        self.push(Message::close(
            Some(CloseCode::MESSAGE_TOO_BIG),
            "a message in parts that is too long",
        ));
        // Fails where the stream has its own close frame to send.
        let _ = poll_fn(|context| self.poll_send(context)).await;
    }
}

/// As much of `reason` as a close frame takes.
fn shortened(reason: &str) -> &str {
    let end = (0..=REASON_LIMIT.min(reason.len()))
        .rev()
        .find(|&end| reason.is_char_boundary(end))
        .unwrap_or_default();
    &reason[..end]
}

/// A connection that counts what comes. The parts of a long message on a slow line are signs of life.
pub(crate) struct Counted<S> {
    stream: BufReader<S>,
    received: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A server's end of a WebSocket, and how many bytes have come on it.
pub(crate) struct Accepted<S> {
    socket: Socket<Counted<S>>,
    received: Arc<AtomicU64>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepted<S> {
    /// Closes it without having made a link of it.
    pub(crate) async fn close(self, code: u16, reason: &str) {
        self.socket.close(code, reason).await;
    }
}

/// The server's end of a WebSocket whose handshake is done. A message may carry the answer to the longest request that
/// we make, and little more: else the peer would choose how much memory we take.
pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    max_request: u32,
) -> Accepted<S> {
    let limit = usize::try_from(max_request)
        .unwrap_or(usize::MAX)
        .saturating_add(MESSAGE_SLACK)
        .max(MESSAGE_FLOOR);
    let limits = Limits::default().max_payload_len(Some(limit));
    let received = Arc::new(AtomicU64::new(0));
    let stream = Counted {
        stream: BufReader::with_capacity(READ_AHEAD, stream),
        received: Arc::clone(&received),
    };
    Accepted {
        socket: Socket::new(ServerBuilder::new().limits(limits).serve(stream)),
        received,
    }
}

/// Makes a link of a socket, kept by a task of its own, which ends with the connection. A plain link whose peer is
/// silent for as long as `silence` is lost; of a `v=1` link the session decides.
pub(crate) fn link<S>(
    Accepted { socket, received }: Accepted<S>,
    kind: LinkKind,
    peer: Peer,
    silence: Duration,
) -> (Link, JoinHandle<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let keeper = Keeper {
        socket,
        kind,
        events: event_sender,
        commands: command_receiver,
        silence,
        received,
        counted: 0,
        heard: Instant::now(),
    };
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

/// What is said to the peer before the connection is closed.
struct Farewell {
    code: u16,
    reason: String,
}

struct Keeper<S> {
    socket: Socket<Counted<S>>,
    kind: LinkKind,
    events: mpsc::Sender<LinkEvent>,
    commands: mpsc::UnboundedReceiver<LinkCommand>,
    silence: Duration,
    /// Bytes that came.
    received: Arc<AtomicU64>,
    /// As many as had come when we looked last.
    counted: u64,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Keeper<S> {
    async fn run(mut self) {
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

    /// A client's frame of at most 125 bytes, masked with zeros.
    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        let length = 0x80 | u8::try_from(payload.len()).unwrap();
        [&[head, length, 0, 0, 0, 0], payload].concat()
    }

    /// What comes of `future` without waiting.
    async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = tokio::task::unconstrained(future) => Some(result),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn who_sends_pings_and_reads_no_answers_is_not_read_from_until_they_do() {
        let (server, mut client) = duplex(4096);
        let mut socket = accept(server, 0).socket;
        let ping = frame(0x89, &[0; 125]);
        let mut sent = 0;
        loop {
            let wrote = at_once(client.write(&ping[sent % ping.len()..])).await;
            let step = at_once(socket.step()).await;
            if wrote.is_none() && step.is_none() {
                break;
            }
            sent += wrote.map_or(0, Result::unwrap);
            assert!(sent < 16 * PONGS, "everything is taken");
        }
        while at_once(socket.step()).await.is_none() {
            client.read_exact(&mut [0; 1024]).await.unwrap();
        }
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
