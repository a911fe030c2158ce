//! A volume and those who serve its image, joined without a delay.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo, Transmission};
use nbd::wire::{CommandFlags, Errno, TransmissionFlags};
use nbd::{Command, Export, Failure, Payload, Reply};
use nbd_session::control::{PageMessage, ServerMessage};
use nbd_session::{
    ImageInfo, LinkId, LinkKind, Output, RequestId, Session, SessionConfig, SessionEvent,
    StoreAction, Volume,
};

/// What a peer does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    /// Takes requests, and keeps them.
    Hangs,
    /// Keeps what is asked at this offset, and answers the rest.
    HangsAt(u64),
    /// Keeps writing commands, and answers the others.
    HangsOnWrites,
    /// Refuses writing commands, and answers the others.
    RefusesWrites,
    /// Carries out writing commands, and says that they failed.
    DeniesWrites,
}

/// One link's peer.
pub(crate) struct Peer {
    pub(crate) link: LinkId,
    pub(crate) mood: Mood,
    image: Vec<u8>,
    handshake: Option<Handshake>,
    transmission: Option<Transmission>,
    /// Everything that was asked, in order.
    pub(crate) asked: Vec<Command>,
    kept: Vec<(ReplyTo, Command)>,
    pub(crate) disconnected: bool,
}

pub(crate) struct Bench {
    pub(crate) volume: Volume,
    /// Of the next peers.
    pub(crate) mood: Mood,
    pub(crate) now: Instant,
    pub(crate) peers: Vec<Peer>,
    pub(crate) completed: Vec<(u64, Result<Reply, Errno>)>,
    pub(crate) events: Vec<SessionEvent>,
    pub(crate) texts: Vec<ServerMessage>,
    /// Codes and reasons.
    pub(crate) closed: Vec<(u16, String)>,
    next_request: u64,
    pub(crate) shelf: Shelf,
}

/// The store of a kept copy.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) bytes: Vec<u8>,
    /// What is done fails.
    pub(crate) is_broken: bool,
}

pub(crate) fn image(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| u8::try_from(at / 512 % 251 + 1).unwrap())
        .collect()
}

pub(crate) fn export(size: u64, flags: TransmissionFlags) -> Export {
    let flags = flags | TransmissionFlags::HAS_FLAGS;
    Export {
        name: "x.iso".into(),
        description: None,
        size,
        flags,
        block_sizes: None,
    }
}

pub(crate) fn announcement(size: u64) -> PageMessage {
    PageMessage::Image(ImageInfo {
        name: "x.iso".into(),
        size,
        modified: Some(1),
    })
}

impl Bench {
    pub(crate) fn new(config: SessionConfig) -> Self {
        Self {
            volume: Volume::new(Session::new(config)),
            mood: Mood::Answers,
            now: Instant::now(),
            peers: Vec::new(),
            completed: Vec::new(),
            events: Vec::new(),
            texts: Vec::new(),
            closed: Vec::new(),
            next_request: 0,
            shelf: Shelf::default(),
        }
    }

    /// A bench whose first link serves a read-only image of `size` bytes.
    pub(crate) fn serving(config: SessionConfig, size: usize) -> Self {
        let mut bench = Self::new(config);
        bench.connect(LinkKind::V1, TransmissionFlags::READ_ONLY, image(size));
        bench
    }

    /// A bench whose first link serves a writable image of 64 KiB.
    pub(crate) fn writable(config: SessionConfig) -> Self {
        let mut bench = Self::new(config);
        bench.connect(LinkKind::V1, WRITABLE, image(65_536));
        bench
    }

    /// A new link, whose peer announces its image and greets.
    pub(crate) fn connect(
        &mut self,
        kind: LinkKind,
        flags: TransmissionFlags,
        image: Vec<u8>,
    ) -> LinkId {
        let size = image.len() as u64;
        let link = self.open(kind, export(size, flags), image);
        if kind == LinkKind::V1 {
            self.say(link, &announcement(size).encode());
        }
        self.greet();
        link
    }

    /// A new link, whose peer says nothing yet.
    pub(crate) fn open(&mut self, kind: LinkKind, export: Export, image: Vec<u8>) -> LinkId {
        let link = self.volume.open_link(self.now, kind);
        self.attend(link, export, image)
    }

    /// A link that may take over, whose peer announces its image and greets.
    pub(crate) fn challenge(&mut self, kind: LinkKind, image: Vec<u8>) -> LinkId {
        let size = image.len() as u64;
        let link = self.volume.challenge(self.now, kind);
        self.attend(link, export(size, TransmissionFlags::READ_ONLY), image);
        if kind == LinkKind::V1 {
            self.say(link, &announcement(size).encode());
        }
        self.greet();
        link
    }

    /// A peer that says nothing yet, for a link.
    pub(crate) fn attend(&mut self, link: LinkId, export: Export, image: Vec<u8>) -> LinkId {
        self.peers.push(Peer {
            link,
            mood: self.mood,
            image,
            handshake: Some(Handshake::new(vec![export], HandshakeLimits::default())),
            transmission: None,
            asked: Vec::new(),
            kept: Vec::new(),
            disconnected: false,
        });
        self.run();
        link
    }

    /// The newest peer begins its handshake.
    pub(crate) fn greet(&mut self) {
        let peer = self.peers.last_mut().unwrap();
        let link = peer.link;
        let greeting = peer
            .handshake
            .as_mut()
            .and_then(Handshake::poll_output)
            .unwrap();
        self.send(link, greeting);
    }

    pub(crate) fn say(&mut self, link: LinkId, text: &str) {
        self.volume.handle_text(self.now, link, text);
        self.run();
    }

    pub(crate) fn send(&mut self, link: LinkId, data: Bytes) {
        self.volume.handle_data(self.now, link, data);
        self.run();
    }

    pub(crate) fn peer(&mut self) -> &mut Peer {
        self.peers.last_mut().unwrap()
    }

    /// Answers what the newest peer kept.
    pub(crate) fn answer_kept(&mut self) {
        let peer = self.peer();
        let (link, mut output) = (peer.link, Vec::new());
        let kept = std::mem::take(&mut peer.kept);
        peer.answer(kept, &mut output);
        for data in output {
            self.send(link, data);
        }
    }

    pub(crate) fn submit(&mut self, command: Command) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.volume
            .submit(self.now, RequestId(id), CommandFlags::empty(), command);
        self.run();
        id
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> u64 {
        self.submit(Command::Read { offset, length })
    }

    pub(crate) fn write(&mut self, offset: u64, byte: u8, length: usize) -> u64 {
        self.submit(Command::Write {
            offset,
            data: Payload::from(Bytes::from(vec![byte; length])),
        })
    }

    /// The answer to a request, if there is one.
    pub(crate) fn answer(&self, id: u64) -> Option<&Result<Reply, Errno>> {
        let answers: Vec<_> = self
            .completed
            .iter()
            .filter(|(request, _)| *request == id)
            .collect();
        assert!(answers.len() <= 1);
        answers.first().map(|(_, result)| result)
    }

    /// The bytes that a READ gave.
    pub(crate) fn bytes(&self, id: u64) -> Vec<u8> {
        match self.answer(id) {
            Some(Ok(Reply::Data(data))) => data.to_bytes().to_vec(),
            other => panic!("request {id}: {other:?}"),
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.volume.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.volume.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    /// Does what the session wants done until there is nothing left to do.
    pub(crate) fn run(&mut self) {
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { link, data } => {
                    let peer = self
                        .peers
                        .iter_mut()
                        .find(|peer| peer.link == link)
                        .unwrap();
                    for answer in peer.receive(data) {
                        self.volume.handle_data(self.now, link, answer);
                    }
                }
                Output::SendText { text, .. } => {
                    self.texts.push(ServerMessage::parse(&text).unwrap());
                }
                Output::Close { code, reason, .. } => self.closed.push((code, reason)),
                Output::Complete { request, result } => self.completed.push((request.0, result)),
                Output::Arrived { .. } => panic!("a volume answers requests as a whole"),
                Output::Store { task, action } => {
                    let result = self.shelf.carry_out(action);
                    self.volume.handle_stored(self.now, task, result);
                }
                Output::Event(event) => self.events.push(event),
            }
        }
    }
}

impl Shelf {
    fn carry_out(&mut self, action: StoreAction) -> Result<Payload, String> {
        if self.is_broken {
            return Err("no space left on device".into());
        }
        let range = |offset: u64, length: usize| {
            let start = usize::try_from(offset).unwrap();
            start..start + length
        };
        match action {
            StoreAction::Write { offset, data } => {
                let range = range(offset, data.len());
                self.bytes.resize(self.bytes.len().max(range.end), 0);
                self.bytes[range].copy_from_slice(&data.to_bytes());
                Ok(Payload::new())
            }
            StoreAction::Read { offset, length } => {
                let bytes = &self.bytes[range(offset, length as usize)];
                Ok(Payload::from(Bytes::copy_from_slice(bytes)))
            }
            StoreAction::Sync => Ok(Payload::new()),
        }
    }
}

/// What a writable image can do in these tests.
pub(crate) const WRITABLE: TransmissionFlags = TransmissionFlags::SEND_FLUSH
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_FUA);

impl Peer {
    /// The bytes that answer what is kept, instead of sending them.
    pub(crate) fn take_answer(&mut self) -> (LinkId, Vec<u8>) {
        let (kept, mut output) = (std::mem::take(&mut self.kept), Vec::new());
        self.answer(kept, &mut output);
        (self.link, output.concat())
    }

    /// What it answers.
    pub(crate) fn receive(&mut self, data: Bytes) -> Vec<Bytes> {
        let mut output = Vec::new();
        match (&mut self.handshake, &mut self.transmission) {
            (Some(handshake), _) => {
                handshake.handle_input(data).unwrap();
                output.extend(std::iter::from_fn(|| handshake.poll_output()));
                if let Some(HandshakeEvent::Transmission { transmission, .. }) =
                    handshake.poll_event()
                {
                    self.transmission = Some(transmission);
                    self.handshake = None;
                }
            }
            (_, Some(transmission)) => transmission.handle_input(data),
            _ => {}
        }
        self.take_requests(&mut output);
        output
    }

    fn take_requests(&mut self, output: &mut Vec<Bytes>) {
        while let Some(transmission) = &mut self.transmission {
            match transmission.poll_request().unwrap() {
                Some(Incoming::Request {
                    reply_to, command, ..
                }) => {
                    self.asked.push(command.clone());
                    self.kept.push((reply_to, command));
                }
                Some(Incoming::Refused { failure, .. }) => {
                    panic!("asked for what may not be: {failure}")
                }
                Some(Incoming::Disconnect) => self.disconnected = true,
                None => break,
            }
        }
        let keeps = |command: &Command| match self.mood {
            Mood::Hangs => true,
            Mood::HangsAt(offset) => command.offset() == offset,
            Mood::HangsOnWrites => command.is_write(),
            Mood::Answers | Mood::RefusesWrites | Mood::DeniesWrites => false,
        };
        let kept = std::mem::take(&mut self.kept);
        let (kept, answered) = kept.into_iter().partition(|(_, command)| keeps(command));
        self.kept = kept;
        self.answer(answered, output);
    }

    fn answer(&mut self, requests: Vec<(ReplyTo, Command)>, output: &mut Vec<Bytes>) {
        for (reply_to, command) in requests {
            let result = self.execute(&command);
            if let Some(transmission) = &mut self.transmission {
                transmission.reply(reply_to, result, output);
            }
        }
    }

    fn execute(&mut self, command: &Command) -> Result<Reply, Failure> {
        match self.mood {
            Mood::RefusesWrites if command.is_write() => Err(Failure::from(Errno::ENOSPC)),
            Mood::DeniesWrites if command.is_write() => {
                self.perform(command)?;
                Err(Failure::from(Errno::EIO))
            }
            _ => self.perform(command),
        }
    }

    fn perform(&mut self, command: &Command) -> Result<Reply, Failure> {
        let start = usize::try_from(command.offset()).unwrap();
        let range = start..start + usize::try_from(command.length()).unwrap();
        match command {
            Command::Read { .. } => Ok(Reply::Data(Payload::from(Bytes::copy_from_slice(
                &self.image[range],
            )))),
            Command::Write { data, .. } => {
                self.image[range].copy_from_slice(&data.to_bytes());
                Ok(Reply::Done)
            }
            Command::Trim { .. } | Command::WriteZeroes { .. } => {
                self.image[range].fill(0);
                Ok(Reply::Done)
            }
            Command::Flush | Command::Cache { .. } => Ok(Reply::Done),
            Command::BlockStatus { .. } => Err(Failure::from(Errno::EINVAL)),
        }
    }
}
