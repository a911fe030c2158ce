//! A page that may do anything: it speaks WebSocket and NBD byte by byte.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::arena::SIZE;
use crate::{
    harness::{PATIENCE as TIMEOUT, Server, uninterrupted},
    page::{ID, link},
};

/// Opcodes of frames (RFC 6455, section 5.2), final ones.
pub(super) const CONTINUATION: u8 = 0x80;
pub(super) const TEXT: u8 = 0x81;
pub(super) const BINARY: u8 = 0x82;
pub(super) const CLOSE: u8 = 0x88;
pub(super) const PING: u8 = 0x89;
pub(super) const PONG: u8 = 0x8a;
/// The bit of a final frame.
pub(super) const FINAL: u8 = 0x80;

/// Options and replies of the handshake (proto.md, "Option types" and "Option reply types").
pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERR_UNSUP: u32 = (1 << 31) + 1;

/// Chunks of structured replies (proto.md, "Structured reply types").
pub(super) const DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_DATA: u16 = 1;
pub(super) const CHUNK_HOLE: u16 = 2;
pub(super) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(super) const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// Which kind of link is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    V1,
}

impl Kind {
    pub(super) const BOTH: [Self; 2] = [Self::Plain, Self::V1];

    pub(super) fn path(self) -> String {
        match self {
            Self::Plain => "/nbd/0".to_owned(),
            Self::V1 => link(ID),
        }
    }
}

/// What the page says that it serves.
pub(super) struct Offer {
    pub(super) size: u64,
    pub(super) flags: u16,
    /// Whether structured replies are agreed to.
    pub(super) structured: bool,
    /// Further information in answer to `NBD_OPT_GO`.
    pub(super) more: Vec<Vec<u8>>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            size: SIZE as u64,
            // HAS_FLAGS and READ_ONLY.
            flags: 3,
            structured: false,
            more: Vec::new(),
        }
    }
}

/// A request as it came on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// The end of a connection: the server's close code and reason; 1006 where it sent none.
pub(super) type Closed = (u16, String);

/// One end of a WebSocket to a server.
pub(super) struct Page {
    pub(super) stream: TcpStream,
    kind: Kind,
    /// Whether structured replies were agreed to.
    structured: bool,
    received: Vec<u8>,
    nbd: Vec<u8>,
    /// Text messages of the server.
    pub(super) texts: Vec<String>,
    closed: Option<Closed>,
    /// Where the last of the reads ended that were answered honestly.
    reached: u64,
}

impl Page {
    /// Opens a link with the token.
    pub(super) fn open(server: &Server, path: &str) -> Self {
        let headers = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            &format!("Authorization: Bearer {}", server.token),
        ];
        let mut stream = server.send("GET", path, &headers, "");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self {
            stream,
            kind: if path.contains("v=1") {
                Kind::V1
            } else {
                Kind::Plain
            },
            structured: false,
            received: Vec::new(),
            nbd: Vec::new(),
            texts: Vec::new(),
            closed: None,
            reached: 0,
        }
    }

    /// Sends bytes as they are. False where nobody takes them any more.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub(super) fn frame(&mut self, head: u8, payload: &[u8]) -> bool {
        self.send(&frame(head, payload))
    }

    pub(super) fn text(&mut self, text: &str) -> bool {
        self.frame(TEXT, text.as_bytes())
    }

    /// Sends bytes of NBD, as one message.
    pub(super) fn nbd(&mut self, bytes: &[u8]) -> bool {
        self.frame(BINARY, bytes)
    }

    /// The image's announcement, where the link carries texts.
    pub(super) fn announce(&mut self, size: u64) {
        self.announce_as("attack.iso", size);
    }

    pub(super) fn announce_as(&mut self, name: &str, size: u64) {
        if self.kind == Kind::V1 {
            let name = serde_json::to_string(name).unwrap();
            self.text(&format!(
                r#"{{"type":"image","name":{name},"size":{size},"modified":7}}"#
            ));
        }
    }

    /// The server's greeting and the client's flags. False where the link has ended.
    pub(super) fn greet(&mut self) -> bool {
        self.nbd(b"NBDMAGICIHAVEOPT\x00\x03");
        self.take(4).is_ok()
    }

    /// The next option: its code and data.
    pub(super) fn option(&mut self) -> Result<(u32, Vec<u8>), Closed> {
        let head = self.take(16)?;
        assert_eq!(&head[..8], b"IHAVEOPT");
        let length = be32(&head[12..]);
        Ok((be32(&head[8..]), self.take(length as usize)?))
    }

    /// Answers options until the client asks for `option`.
    pub(super) fn haggle_until(&mut self, option: u32) {
        assert!(self.greet());
        loop {
            match self.option().expect("an option") {
                (asked, _) if asked == option => return,
                (asked, _) => self.nbd(&reply(asked, REP_ERR_UNSUP, b"")),
            };
        }
    }

    /// A whole handshake, unless the link has ended.
    pub(super) fn negotiate(&mut self, offer: &Offer) {
        if !self.greet() {
            return;
        }
        self.structured = offer.structured;
        loop {
            let (option, _) = self.option().expect("an option");
            match option {
                OPT_STRUCTURED_REPLY if offer.structured => self.nbd(&reply(option, REP_ACK, b"")),
                OPT_GO => break,
                _ => self.nbd(&reply(option, REP_ERR_UNSUP, b"")),
            };
        }
        for information in &offer.more {
            self.nbd(&reply(OPT_GO, REP_INFO, information));
        }
        let export = export_information(offer.size, offer.flags);
        self.nbd(&reply(OPT_GO, REP_INFO, &export));
        self.nbd(&reply(OPT_GO, REP_ACK, b""));
    }

    /// The next request.
    pub(super) fn asked(&mut self) -> Result<Asked, Closed> {
        let head = self.take(28)?;
        assert_eq!(&head[..4], 0x2560_9513_u32.to_be_bytes());
        Ok(Asked {
            command: be16(&head[6..]),
            cookie: be64(&head[8..]),
            offset: be64(&head[16..]),
            length: be32(&head[24..]),
        })
    }

    /// Answers a read as it should be.
    pub(super) fn answer(&mut self, content: &[u8], asked: Asked) {
        self.reached = self.reached.max(asked.offset + u64::from(asked.length));
        let start = usize::try_from(asked.offset).unwrap();
        let data = match asked.command {
            0 => &content[start..start + asked.length as usize],
            _ => &[],
        };
        let answer = match self.structured && asked.command == 0 {
            true => chunk(asked.cookie, DONE, CHUNK_DATA, &data_at(asked.offset, data)),
            false => simple(asked.cookie, 0, data),
        };
        self.nbd(&answer);
    }

    /// Serves honestly until the request that covers `place`.
    pub(super) fn asked_for(&mut self, content: &[u8], place: usize) -> Asked {
        loop {
            let asked = self.asked().expect("a request");
            let end = asked.offset + u64::from(asked.length);
            if (asked.offset..end).contains(&(place as u64)) && asked.command == 0 {
                return asked;
            }
            self.answer(content, asked);
        }
    }

    /// Serves honestly until the end of the image was asked for, as each new session does.
    pub(super) fn serve_the_edges(&mut self, content: &[u8]) {
        while self.reached < content.len() as u64 {
            let asked = self.asked().expect("a request");
            self.answer(content, asked);
        }
    }

    /// Serves honestly until the link ends.
    pub(super) fn serve(mut self, content: &[u8]) {
        self.stream.set_read_timeout(None).unwrap();
        while let Ok(asked) = self.asked() {
            self.answer(content, asked);
        }
    }

    /// Serves honestly until `done`.
    pub(super) fn serve_until(&mut self, content: &[u8], done: impl Fn() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        self.stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        while !done() {
            assert!(Instant::now() < deadline, "not within {TIMEOUT:?}");
            while self.nbd.len() >= 28 {
                let asked = self.asked().unwrap();
                self.answer(content, asked);
            }
            match self.receive() {
                Ok(()) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error} {:?}", self.closed),
            }
        }
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    }

    /// Reads until the server closes.
    pub(super) fn closed(&mut self) -> Closed {
        loop {
            if let Err(closed) = self.take(usize::MAX) {
                return closed;
            }
        }
    }

    /// The server closes with this code, and a reason that says this.
    #[track_caller]
    pub(super) fn is_closed_with(&mut self, code: u16, said: &str) {
        let (closed, reason) = self.closed();
        assert!(closed == code && reason.contains(said), "{closed} {reason}");
    }

    /// Whether the server has closed, or does so soon.
    pub(super) fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let received = self.receive();
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let still_open = |error: &std::io::Error| {
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        };
        self.closed.is_some() || received.is_err_and(|error| !still_open(&error))
    }

    /// Sends this over and over until the server closes; how often it was sent.
    pub(super) fn flood(&mut self, bytes: &[u8]) -> usize {
        let mut count = 0;
        let deadline = Instant::now() + TIMEOUT;
        while self.send(bytes) && !self.is_closed_within(Duration::from_millis(1)) {
            assert!(Instant::now() < deadline, "still open after {count} times");
            count += 1;
        }
        count
    }

    /// So many bytes of NBD.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Closed> {
        while self.nbd.len() < length {
            if let Some(closed) = self.closed.clone() {
                return Err(closed);
            }
            if let Err(error) = self.receive() {
                let kind = error.kind();
                assert!(
                    kind != ErrorKind::WouldBlock,
                    "nothing came within {TIMEOUT:?}"
                );
                let broken = (1006, error.to_string());
                return Err(self.closed.get_or_insert(broken).clone());
            }
        }
        Ok(self.nbd.drain(..length).collect())
    }

    /// Takes what comes next.
    fn receive(&mut self) -> std::io::Result<()> {
        let mut room = [0; 1 << 16];
        let count = uninterrupted(|| self.stream.read(&mut room))?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.received.extend(&room[..count]);
        while let Some((head, payload)) = take_frame(&mut self.received) {
            match head {
                BINARY => self.nbd.extend(payload),
                TEXT => self.texts.push(String::from_utf8(payload).unwrap()),
                CLOSE => {
                    let reason = String::from_utf8(payload[2..].to_vec()).unwrap();
                    self.closed = Some((be16(&payload), reason));
                }
                PING | PONG => {}
                other => panic!("a frame {other:#x}"),
            }
        }
        Ok(())
    }
}

/// A frame of a client, masked with zeros.
pub(super) fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_head(head, payload.len() as u64);
    frame.extend(payload);
    frame
}

/// The head of such a frame, which may promise anything.
pub(super) fn frame_head(head: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![head];
    match length {
        0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes
}

/// A frame of the server, once all of it is there.
fn take_frame(received: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (length, start) = match *received.get(1)? {
        126 => (usize::from(be16(received.get(2..4)?)), 4),
        127 => (usize::try_from(be64(received.get(2..10)?)).unwrap(), 10),
        short => (usize::from(short), 2),
    };
    let payload = received.get(start..start + length)?.to_vec();
    let head = received[0];
    received.drain(..start + length);
    Some((head, payload))
}

/// A reply to an option.
pub(super) fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&reply_head(option, kind, length), data].concat()
}

/// The head of such a reply, which may promise anything.
pub(super) fn reply_head(option: u32, kind: u32, length: u32) -> Vec<u8> {
    [
        &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// `NBD_INFO_EXPORT`.
pub(super) fn export_information(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

/// `NBD_INFO_BLOCK_SIZE`.
pub(super) fn block_sizes(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes);
    [&[0, 3][..], sizes.as_flattened()].concat()
}

/// A simple reply.
pub(super) fn simple(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    [
        &0x6744_6698_u32.to_be_bytes()[..],
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A chunk of a structured reply.
pub(super) fn chunk(cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&chunk_head(cookie, flags, kind, length), payload].concat()
}

/// The head of such a chunk, which may promise anything.
pub(super) fn chunk_head(cookie: u64, flags: u16, kind: u16, length: u32) -> Vec<u8> {
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// The payload of a chunk with data.
pub(super) fn data_at(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes[..2].try_into().unwrap())
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}
