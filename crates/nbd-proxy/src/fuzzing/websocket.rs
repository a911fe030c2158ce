//! From the bytes of a WebSocket to a volume.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::{Command, Reply, wire::CommandFlags};
use nbd_session::{
    EndReason, LinkId, Output, RequestId, Session, SessionConfig, SessionEvent, Volume,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::{
    attachment::Limits,
    link::{Link, LinkCommand, LinkEvent, LinkKind, Peer, websocket},
};

/// Room between the two ends, in bytes: the server's first words fit.
const ROOM: usize = 1 << 16;
/// What the machine reads as soon as there is a disk: offset and length.
const READS: [(u64, u32); 2] = [(0, 512), (4096, 4096)];

/// What became of a page's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// How long the image is, once there is one.
    pub size: Option<u64>,
    /// Why the session ended.
    pub ended: Option<String>,
    /// What the machine's reads gave, in the order of their answers.
    pub reads: Vec<Option<Vec<u8>>>,
    /// With which code we closed the link, and why.
    pub closed: Option<(u16, String)>,
    /// How many messages we sent.
    pub sent: usize,
}

/// A page sends `stream` in pieces after the handshake of its WebSocket, and then ends the connection.
pub fn websocket(v1: bool, pieces: impl Iterator<Item = Bytes>) -> Received {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let Ok(runtime) = runtime else {
        return Received::default();
    };
    let kind = if v1 { LinkKind::V1 } else { LinkKind::Plain };
    runtime.block_on(meet(kind, pieces.collect()))
}

async fn meet(kind: LinkKind, pieces: Vec<Bytes>) -> Received {
    let (server, page) = duplex(ROOM);
    let socket = websocket::accept(server, Limits::SERVE.max_request);
    let (link, keeper) = websocket::link(socket, kind, Peer::default(), Duration::from_secs(60));
    let (received, ()) = tokio::join!(Machine::new(link).run(), play(page, pieces));
    keeper.abort();
    received
}

/// The page reads whatever comes, so that nobody waits for it.
async fn play(page: DuplexStream, pieces: Vec<Bytes>) {
    let (mut reader, mut writer) = tokio::io::split(page);
    let speak = async move {
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let listen = async move {
        let mut heard = [0; 4096];
        while reader.read(&mut heard).await.is_ok_and(|count| count > 0) {}
    };
    tokio::join!(speak, listen);
}

/// A volume with one link, and a reader.
struct Machine {
    volume: Volume,
    link: Link,
    id: LinkId,
    now: Instant,
    received: Received,
}

impl Machine {
    fn new(link: Link) -> Self {
        let now = Instant::now();
        let config = SessionConfig {
            hold: Duration::ZERO,
            max_request: Limits::SERVE.max_request,
            max_in_flight: Limits::SERVE.max_in_flight,
            ..SessionConfig::default()
        };
        let mut volume = Volume::new(Session::new(config));
        let id = volume.open_link(now, link.kind);
        Self {
            volume,
            link,
            id,
            now,
            received: Received::default(),
        }
    }

    async fn run(mut self) -> Received {
        self.act();
        while let Some(event) = self.link.events.recv().await {
            match event {
                LinkEvent::Data(data) => self.volume.handle_data(self.now, self.id, data),
                LinkEvent::Text(text) => self.volume.handle_text(self.now, self.id, &text),
                LinkEvent::Alive => self.volume.handle_alive(self.now, self.id),
                LinkEvent::Closed(closing) => {
                    self.volume.handle_closed(self.now, self.id, closing);
                    self.act();
                    break;
                }
            }
            self.act();
        }
        self.volume.end(self.now, EndReason::Shutdown);
        self.act();
        assert!(self.volume.is_ended(), "a session that does not end");
        self.received
    }

    /// Does what the volume wants done.
    fn act(&mut self) {
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { data, .. } => {
                    self.received.sent += 1;
                    let _ = self.link.commands.send(LinkCommand::Data(data));
                }
                Output::SendText { text, .. } => {
                    self.received.sent += 1;
                    let _ = self.link.commands.send(LinkCommand::Text(text));
                }
                Output::Close { code, reason, .. } => {
                    self.received.closed = Some((code, reason.clone()));
                    let _ = self.link.commands.send(LinkCommand::Close { code, reason });
                }
                Output::Complete { result, .. } => self.received.reads.push(match result {
                    Ok(Reply::Data(data)) => Some(data.to_bytes().to_vec()),
                    _ => None,
                }),
                Output::Event(SessionEvent::Ready(export)) => {
                    let _ = self.link.commands.send(LinkCommand::Trust);
                    self.read(export.size);
                }
                Output::Event(SessionEvent::Ended(reason)) => {
                    self.received.ended = Some(reason.to_string());
                }
                Output::Event(_) | Output::Store { .. } | Output::Arrived { .. } => {}
            }
        }
    }

    fn read(&mut self, size: u64) {
        self.received.size = Some(size);
        for (number, (offset, length)) in (0..).zip(READS) {
            let command = Command::Read { offset, length };
            self.volume
                .submit(self.now, RequestId(number), CommandFlags::empty(), command);
        }
    }
}
