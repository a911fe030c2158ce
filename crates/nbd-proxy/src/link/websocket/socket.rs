//! A WebSocket that reads while it writes.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_core::Stream as _;
use futures_sink::Sink as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_websockets::{CloseCode, Error, Message, WebSocketStream};

use crate::link::Closing;

/// How long a close frame may wait to be sent and answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of answers to pings may wait for a peer that doesn't read them. While there are more, nothing is read
/// from it either: it would choose how much memory we take.
const PONGS: usize = 64 << 10;
/// Bytes up to this length are joined with their neighbours: a message costs more than such a copy.
const SHORT: usize = 16 << 10;
/// How long a message of joined bytes is at most.
const JOINED: usize = 64 << 10;
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
    pub(super) fn closing(self) -> Closing {
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

    /// From now on a message may be this long, in bytes.
    pub(super) fn allow(&mut self, longest: usize) {
        let limits = self.stream.limits_mut();
        limits.set_max_payload_len(Some(longest));
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
    pub(super) async fn part(mut self) {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::link::websocket::accept;

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
}
