//! The server's side of one NBD connection: a client of a socket device, or the kernel's driver.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use nbd::{
    BlockSizes, Command, Export, Failure, Reply,
    server::{
        Handshake, HandshakeError, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo,
        Transmission, TransmissionError,
    },
    wire::{CommandFlags, TransmissionFlags},
};
use nbd_session::Geometry;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval, timeout},
};
#[cfg(feature = "serve")]
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use super::{
    Completion, DeviceRequest, ReplySlot,
    budget::{Inlet, Share},
};

/// How long a client may take to choose an export.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// How many requests of one client are carried out at once.
const MAX_REQUESTS: usize = 64;
/// Bytes of requests and replies held for one client above which no more are taken from it. One request may exceed
/// it: the longest is [`MAX_PAYLOAD`].
const MAX_BYTES: usize = 16 << 20;
/// A request takes this much memory at least, in bytes.
const LEAST_COST: usize = 4096;
/// Bytes of replies beyond its share, such as refusals, above which no more requests are taken from a client.
const UNSHARED: usize = 256 << 10;
/// How often it is looked how much a client has read and sent.
const LOOK: Duration = Duration::from_secs(10);
/// Who reads and sends fewer bytes in that time, and keeps others waiting, is dropped.
const LEAST_PROGRESS: usize = 1 << 20;
/// The longest READ or WRITE, in bytes; what clients assume where nothing is announced.
const MAX_PAYLOAD: u32 = 32 << 20;
/// Room for one read of the socket.
const READ_ROOM: usize = 64 << 10;
/// How many pieces one write hands to the kernel, which takes 1024 (`UIO_MAXIOV`).
const MAX_PIECES: usize = 64;

/// How a connection ended that broke no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// By `NBD_CMD_DISC` or `NBD_OPT_ABORT`.
    Disconnect,
    /// By end of file, or because there is no volume any more.
    Closed,
}

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// It broke a rule of the handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It did not choose an export in time.
    #[error("no export was chosen within {} s", HANDSHAKE_TIME.as_secs())]
    Slow,
    /// It doesn't read its replies, or doesn't send what it announced, and others wait for that memory.
    #[error(
        "it read or sent next to nothing for {} s while other clients waited for the memory that it held",
        LOOK.as_secs()
    )]
    Stuck,
    /// It broke a rule of transmission.
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
    /// It couldn't begin TLS: it shows no certificate of the configured authority, for one.
    #[cfg(feature = "serve")]
    #[error("no TLS: {0}")]
    Tls(io::Error),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a volume looks like to NBD clients.
pub(crate) fn export(name: &str, geometry: &Geometry) -> Export {
    // A disk with nothing to flush takes FLUSH all the same, so that nobody has to know.
    let mut flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    for (can, flag) in [
        (
            geometry.read_only,
            TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN,
        ),
        (geometry.can_fua, TransmissionFlags::SEND_FUA),
        (geometry.can_trim, TransmissionFlags::SEND_TRIM),
        (
            geometry.can_write_zeroes,
            TransmissionFlags::SEND_WRITE_ZEROES,
        ),
        (geometry.can_fast_zero, TransmissionFlags::SEND_FAST_ZERO),
        (geometry.can_cache, TransmissionFlags::SEND_CACHE),
        (geometry.rotational, TransmissionFlags::ROTATIONAL),
    ] {
        flags.set(flag, can);
    }
    let description = geometry.description.as_deref().unwrap_or(&geometry.name);
    Export {
        name: name.into(),
        description: (!description.is_empty()).then(|| description.into()),
        size: geometry.size,
        flags,
        block_sizes: Some(BlockSizes {
            minimum: geometry.minimum_block,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
        }),
    }
}

impl ClientError {
    /// Whether the client is simply gone, without a word.
    fn is_leaving(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
    }
}

/// A handshake in which every client gets what it asks for.
pub(crate) fn handshake(exports: Vec<Export>) -> Handshake {
    Handshake::new(exports, HandshakeLimits::default())
}

/// Serves a client that begins with a handshake, or is in the midst of one.
pub(crate) async fn serve<S>(
    stream: S,
    handshake: Handshake,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match serve_from_handshake(stream, handshake, inlet).await {
        Err(error) if error.is_leaving() => Ok(ClientEnd::Closed),
        result => result,
    }
}

async fn serve_from_handshake<S>(
    mut stream: S,
    handshake: Handshake,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let end = match timeout(HANDSHAKE_TIME, shake_hands(&mut stream, handshake)).await {
        Ok(Ok(HandshakeEvent::Transmission { transmission, .. })) => {
            serve_transmission(&mut stream, transmission, inlet).await
        }
        // TLS is never begun where it was not offered.
        Ok(Ok(HandshakeEvent::Aborted | HandshakeEvent::StartTls(_))) => Ok(ClientEnd::Disconnect),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Slow),
    }?;
    // TLS is closed before its connection is (proto.md, "Terminating the transmission phase").
    let _ = timeout(FAREWELL, stream.shutdown()).await;
    Ok(end)
}

/// The part of a handshake that is in the clear, and that of TLS. None where the client left in between.
#[cfg(feature = "serve")]
pub(crate) async fn start_tls<S>(
    mut stream: S,
    config: std::sync::Arc<ServerConfig>,
    exports: Vec<Export>,
) -> Result<Option<(TlsStream<S>, Handshake)>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Handshake::requiring_tls(exports, HandshakeLimits::default());
    let secured = async move {
        let HandshakeEvent::StartTls(begin) = shake_hands(&mut stream, handshake).await? else {
            return Ok(None);
        };
        stream.write_all(&begin.acknowledgement).await?;
        let stream = TlsAcceptor::from(config)
            .accept(stream)
            .await
            .map_err(ClientError::Tls)?;
        Ok(Some((stream, begin.handshake)))
    };
    match secured.await {
        Err(error) if ClientError::is_leaving(&error) => Ok(None),
        result => result,
    }
}

async fn shake_hands<S>(
    stream: &mut S,
    mut handshake: Handshake,
) -> Result<HandshakeEvent, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let mut broken = Ok(());
    loop {
        while let Some(output) = handshake.poll_output() {
            stream.write_all(&output).await?;
        }
        stream.flush().await?;
        broken?;
        if let Some(event) = handshake.poll_event() {
            return Ok(event);
        }
        input.reserve(READ_ROOM);
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // What it has to say about an error goes out before the connection is closed.
        broken = handshake.handle_input(input.split().freeze());
    }
}

/// Serves a client in transmission until it leaves.
pub(crate) async fn serve_transmission<S>(
    stream: S,
    transmission: Transmission,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let (completed, completions) = mpsc::unbounded_channel();
    let connection = Connection {
        reader,
        input: BytesMut::new(),
        transmission,
        share: inlet.share(),
        requests: inlet.requests,
        completed,
        completions,
        waiting: HashMap::new(),
        waiting_bytes: 0,
        held_back: None,
        announced: 0,
        next_tag: 0,
        output: Output {
            writer,
            pieces: VecDeque::new(),
            bytes: 0,
            flushed: true,
        },
        leaving: false,
        moved: 0,
        behind: false,
    };
    connection.run().await
}

/// A request as the client sent it.
struct Request {
    reply_to: ReplyTo,
    flags: CommandFlags,
    command: Command,
}

impl Request {
    /// What it takes of memory, in bytes.
    fn cost(&self) -> usize {
        let data = match &self.command {
            Command::Read { length, .. } => usize::try_from(*length).unwrap_or(usize::MAX),
            Command::Write { data, .. } => data.len(),
            _ => 0,
        };
        data.max(LEAST_COST)
    }
}

/// A request that is being carried out.
struct Waiting {
    reply_to: ReplyTo,
    bytes: usize,
}

struct Connection<S> {
    reader: ReadHalf<S>,
    input: BytesMut,
    transmission: Transmission,
    requests: mpsc::Sender<DeviceRequest>,
    completed: mpsc::UnboundedSender<Completion>,
    completions: mpsc::UnboundedReceiver<Completion>,
    waiting: HashMap<u64, Waiting>,
    waiting_bytes: usize,
    share: Share,
    /// The next request, which waits for its share.
    held_back: Option<Request>,
    /// Bytes of a WRITE whose data is on its way, for which there is a share.
    announced: usize,
    next_tag: u64,
    output: Output<S>,
    /// `NBD_CMD_DISC` has come: what is outstanding is answered, nothing more is taken.
    leaving: bool,
    /// Bytes read and written since the last look at how fast the client is.
    moved: usize,
    /// It had something to read or to send all the time since then.
    behind: bool,
}

enum Step {
    Input(usize),
    Completions,
    Sent(usize),
    Granted,
    Look,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    async fn run(mut self) -> Result<ClientEnd, ClientError> {
        let mut completions = Vec::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if !self.take_requests().await? {
                return Ok(ClientEnd::Closed);
            }
            self.share
                .shrink_to(self.waiting_bytes + self.announced + self.output.bytes);
            self.behind &= self.owes();
            if self.leaving && self.waiting.is_empty() && self.output.is_empty() {
                return Ok(ClientEnd::Disconnect);
            }
            match self.step(&mut completions, &mut looks).await? {
                Step::Input(0) => return Ok(ClientEnd::Closed),
                Step::Input(count) => {
                    self.moved += count;
                    self.transmission.handle_input(self.input.split().freeze());
                }
                Step::Completions => completions
                    .drain(..)
                    .for_each(|completion| self.complete(completion)),
                Step::Sent(count) => self.moved += count,
                Step::Granted => {}
                Step::Look => self.look()?,
            }
        }
    }

    async fn step(
        &mut self,
        completions: &mut Vec<Completion>,
        looks: &mut Interval,
    ) -> io::Result<Step> {
        let taking = self.takes_requests();
        if taking && self.input.capacity() < READ_ROOM / 16 {
            self.input.reserve(READ_ROOM);
        }
        tokio::select! {
            count = self.reader.read_buf(&mut self.input), if taking => Ok(Step::Input(count?)),
            _ = self.completions.recv_many(completions, MAX_REQUESTS) => Ok(Step::Completions),
            count = self.output.send(), if !self.output.is_empty() => count.map(Step::Sent),
            () = self.share.granted(), if self.share.is_waiting() => Ok(Step::Granted),
            _ = looks.tick() => Ok(Step::Look),
        }
    }

    fn takes_requests(&self) -> bool {
        !self.leaving
            && !self.share.is_waiting()
            && self.waiting.len() < MAX_REQUESTS
            && self.waiting_bytes + self.output.bytes < MAX_BYTES
            && self.waiting_bytes + self.output.bytes < self.share.held() + UNSHARED
    }

    /// Whether the client has something to read, or to send.
    fn owes(&self) -> bool {
        !self.output.is_empty() || self.announced > 0
    }

    /// Who holds memory for which others wait, and moves next to nothing, is dropped.
    fn look(&mut self) -> Result<(), ClientError> {
        if self.behind && self.moved < LEAST_PROGRESS && self.share.others_wait() {
            return Err(ClientError::Stuck);
        }
        self.moved = 0;
        self.behind = self.owes();
        Ok(())
    }

    /// Hands on what has arrived, as far as the limits allow. False when there is no volume any more.
    async fn take_requests(&mut self) -> Result<bool, ClientError> {
        while self.takes_requests() {
            let Some(request) = self.next_request()? else {
                break;
            };
            let cost = request.cost();
            if self.announced > 0 {
                self.announced = 0;
            } else if !self.share.take(cost) {
                self.held_back = Some(request);
                break;
            }
            if !self.hand_on(request, cost).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// None: there is none yet.
    fn next_request(&mut self) -> Result<Option<Request>, ClientError> {
        if let Some(request) = self.held_back.take() {
            return Ok(Some(request));
        }
        while self.takes_requests() {
            match self.transmission.poll_request()? {
                None => {
                    self.announce();
                    return Ok(None);
                }
                Some(Incoming::Disconnect) => self.leaving = true,
                Some(Incoming::Refused { reply_to, failure }) => self.reply(reply_to, Err(failure)),
                Some(Incoming::Request {
                    reply_to,
                    flags,
                    command,
                }) => {
                    return Ok(Some(Request {
                        reply_to,
                        flags,
                        command,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// The data of a WRITE is read when there is a share for all of it.
    fn announce(&mut self) {
        let awaited = self.transmission.awaited_payload();
        let cost = awaited.map_or(0, |length| (length as usize).max(LEAST_COST));
        if self.announced == 0 && cost > 0 && self.share.take(cost) {
            self.announced = cost;
        }
    }

    async fn hand_on(&mut self, request: Request, bytes: usize) -> bool {
        let Request {
            reply_to,
            flags,
            command,
        } = request;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.waiting_bytes += bytes;
        self.waiting.insert(tag, Waiting { reply_to, bytes });
        let reply = ReplySlot::new(tag, self.completed.clone());
        let request = DeviceRequest {
            flags,
            command,
            reply,
        };
        self.requests.send(request).await.is_ok()
    }

    fn complete(&mut self, (tag, result): Completion) {
        if let Some(Waiting { reply_to, bytes }) = self.waiting.remove(&tag) {
            self.waiting_bytes -= bytes;
            self.reply(reply_to, result.map_err(Failure::from));
        }
    }

    fn reply(&mut self, reply_to: ReplyTo, result: Result<Reply, Failure>) {
        let mut pieces = Vec::new();
        self.transmission.reply(reply_to, result, &mut pieces);
        self.output.push(pieces);
    }
}

/// What waits to be sent, written in as few system calls as there can be.
struct Output<S> {
    writer: WriteHalf<S>,
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Whether the writer keeps nothing back: TLS takes more than it can send.
    flushed: bool,
}

impl<S: AsyncWrite> Output<S> {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.flushed
    }

    fn push(&mut self, pieces: Vec<Bytes>) {
        for piece in pieces {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Writes once, and says how many bytes, or flushes what was written. Cancel safe: nothing is taken off the queue
    /// before it was written.
    async fn send(&mut self) -> io::Result<usize> {
        let Self { writer, pieces, .. } = self;
        if pieces.is_empty() {
            writer.flush().await?;
            self.flushed = true;
            return Ok(0);
        }
        let written = poll_fn(|context| {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = slices
                .iter_mut()
                .zip(pieces.iter())
                .map(|(slice, piece)| *slice = IoSlice::new(piece))
                .count();
            Pin::new(&mut *writer).poll_write_vectored(context, &slices[..count])
        })
        .await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.flushed = false;
        self.bytes -= written;
        self.consume(written);
        Ok(written)
    }

    fn consume(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
