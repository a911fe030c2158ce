//! Those who serve images: a page, with one image and any number of connections, and what goes wrong with it.

use std::collections::HashMap;

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo, Transmission};
use nbd::wire::{CommandFlags, Errno, ExtentFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Extent, Failure, Payload, Reply};
use nbd_session::control::PageMessage;
use nbd_session::{ImageInfo, LinkId, LinkKind};

use crate::random::Random;
use crate::store::{FOREIGN, ORIGINAL, SECTOR, Store, ZEROES, stamp_of};

/// What a connection offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Right,
    OtherSize,
    OtherName,
    Modified,
    OtherContent,
    OtherAbilities,
    /// The size in the `image` message is not the export's.
    Inconsistent,
}

/// The page, and its image.
pub(crate) struct Page {
    pub(crate) export: Export,
    pub(crate) store: Store,
    pub(crate) foreign: Store,
    /// In percent: requests that are never answered.
    pub(crate) hang: u64,
    /// In percent: requests that are answered with an error.
    pub(crate) errors: u64,
    /// Bytes of answered writes that no flush has covered.
    pub(crate) unflushed: u64,
}

impl Page {
    pub(crate) fn new(random: &mut Random, writable: bool) -> Self {
        let size = match random.below(4) {
            0 if !writable => random.between(1, 600),
            1 => random.between(1, 128) * SECTOR as u64,
            _ => random.between(0, 127) * SECTOR as u64 + random.between(8, 511),
        };
        let mut flags = TransmissionFlags::HAS_FLAGS;
        let optional = [
            TransmissionFlags::SEND_FUA,
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_CACHE,
        ];
        flags.extend(optional.into_iter().filter(|_| random.percent(70)));
        flags.set(TransmissionFlags::READ_ONLY, !writable);
        flags.set(TransmissionFlags::SEND_FUA, writable);
        flags.set(TransmissionFlags::SEND_FLUSH, random.percent(85));
        let minimum = if writable || random.percent(70) {
            1
        } else {
            512
        };
        let sizes = BlockSizes {
            minimum,
            preferred: 4096,
            maximum: random.pick(&[4096, 8192, 1 << 25]),
        };
        let export = Export {
            name: "image".into(),
            description: None,
            size: if minimum > 1 {
                size.next_multiple_of(u64::from(minimum))
            } else {
                size
            },
            flags,
            block_sizes: random
                .percent(70)
                .then_some(sizes)
                .or((minimum > 1).then_some(sizes)),
        };
        Self {
            store: Store::new(export.size, ORIGINAL),
            foreign: Store::new(export.size, FOREIGN),
            export,
            hang: 0,
            errors: 0,
            unflushed: 0,
        }
    }

    /// Whether writes may be lost by a crash in spite of having been answered.
    pub(crate) fn has_flush(&self) -> bool {
        self.export.flags.contains(TransmissionFlags::SEND_FLUSH)
    }

    /// Carries out a request.
    fn execute(
        &mut self,
        random: &mut Random,
        offer: Offer,
        flags: CommandFlags,
        command: &Command,
    ) -> Result<Reply, Failure> {
        if random.percent(self.errors) {
            return Err(Failure::new(
                random.pick(&[Errno::EIO, Errno::ESHUTDOWN]),
                "no luck",
            ));
        }
        let store = if offer == Offer::OtherContent {
            &mut self.foreign
        } else {
            &mut self.store
        };
        let stable = flags.contains(CommandFlags::FUA)
            || !self.export.flags.contains(TransmissionFlags::SEND_FLUSH);
        let start = usize::try_from(command.offset()).unwrap() / SECTOR;
        let length = usize::try_from(command.length()).unwrap();
        match command {
            Command::Read { offset, .. } => {
                return Ok(Reply::Data(Payload::from(Bytes::from(
                    store.read(*offset, length),
                ))));
            }
            Command::Write { data, .. } => {
                for (sector, bytes) in (start..).zip(data.to_bytes().chunks(SECTOR)) {
                    store.write(sector, stamp_of(bytes, sector), stable);
                }
                self.unflushed += length as u64;
            }
            Command::WriteZeroes { .. } | Command::Trim { .. } => {
                for sector in start..start + length.div_ceil(SECTOR) {
                    store.write(sector, ZEROES, stable);
                }
            }
            Command::Flush => {
                store.flush();
                self.unflushed = 0;
            }
            Command::Cache { .. } => {}
            Command::BlockStatus { .. } => {
                let length = u32::try_from(length).unwrap();
                let first = u32::try_from(random.between(1, u64::from(length))).unwrap();
                let mut extents = vec![Extent {
                    length: first,
                    flags: ExtentFlags::empty(),
                }];
                if first < length && !flags.contains(CommandFlags::REQ_ONE) {
                    extents.push(Extent {
                        length: length - first,
                        flags: ExtentFlags::ZERO,
                    });
                }
                return Ok(Reply::BlockStatus(extents));
            }
        }
        Ok(Reply::Done)
    }
}

/// One connection of a page.
pub(crate) struct Connection {
    pub(crate) link: LinkId,
    pub(crate) kind: LinkKind,
    pub(crate) offer: Offer,
    /// The page does nothing for it any more.
    pub(crate) dead: bool,
    /// Nothing passes, in either direction, and nobody notices.
    pub(crate) silent: bool,
    /// The session has closed it, or knows that it is gone.
    pub(crate) gone: bool,
    /// When the last message to the page, or to the session, arrives: messages keep their order.
    pub(crate) page_has_until: u64,
    pub(crate) session_has_until: u64,
    server: Server,
    requests: HashMap<u64, (ReplyTo, CommandFlags, Command)>,
    next_request: u64,
    in_flight: u64,
    structured: bool,
}

enum Server {
    Handshake(Handshake),
    Transmission(Transmission),
    Ended,
}

impl Connection {
    pub(crate) fn new(link: LinkId, kind: LinkKind, offer: Offer, page: &Page) -> Self {
        let mut export = page.export.clone();
        match offer {
            Offer::OtherSize => export.size += 4096,
            Offer::OtherName if kind == LinkKind::Plain => export.name = "other".into(),
            Offer::OtherAbilities => export.flags.toggle(TransmissionFlags::READ_ONLY),
            _ => {}
        }
        Self {
            link,
            kind,
            offer,
            dead: false,
            silent: false,
            gone: false,
            page_has_until: 0,
            session_has_until: 0,
            server: Server::Handshake(Handshake::new(vec![export], HandshakeLimits::default())),
            requests: HashMap::new(),
            next_request: 0,
            in_flight: 0,
            structured: false,
        }
    }

    /// The `image` message of a v=1 link, and the greeting.
    pub(crate) fn open(&mut self, page: &Page) -> (Option<String>, Vec<Bytes>) {
        let mut image = ImageInfo {
            name: "x.iso".into(),
            size: page.export.size,
            modified: Some(1_700_000_000_000),
        };
        match self.offer {
            Offer::OtherSize => image.size += 4096,
            Offer::OtherName => image.name = "y.iso".into(),
            Offer::Modified => image.modified = None,
            Offer::Inconsistent => image.size += 1,
            Offer::Right | Offer::OtherContent | Offer::OtherAbilities => {}
        }
        let text = (self.kind == LinkKind::V1).then(|| PageMessage::Image(image).encode());
        (text, self.handshake_output())
    }

    /// Takes bytes from the session. Gives what is to be sent, and the requests that are to be carried out.
    pub(crate) fn receive(&mut self, data: Bytes, max_in_flight: u64) -> (Vec<Bytes>, Vec<u64>) {
        let mut output = Vec::new();
        match &mut self.server {
            Server::Handshake(handshake) => {
                handshake
                    .handle_input(data)
                    .expect("the session keeps the rules of the handshake");
                output = self.handshake_output();
            }
            Server::Transmission(transmission) => transmission.handle_input(data),
            Server::Ended => {}
        }
        (output, self.take_requests(max_in_flight))
    }

    /// Carries out a request; gives the reply. A dead connection carries out nothing.
    pub(crate) fn execute(
        &mut self,
        page: &mut Page,
        random: &mut Random,
        request: u64,
    ) -> Vec<Bytes> {
        let mut output = Vec::new();
        let Server::Transmission(transmission) = &mut self.server else {
            return output;
        };
        let Some((reply_to, flags, command)) = self.requests.remove(&request) else {
            return output;
        };
        self.in_flight -= cost(&command, self.structured);
        if std::env::var_os("SIM_SEED").is_some() {
            eprintln!(
                "   {:?} executes {flags:?} {:?} {}+{}",
                self.link,
                command.command_type(),
                command.offset() / 512,
                command.length() / 512
            );
        }
        let result = page.execute(random, self.offer, flags, &command);
        transmission.reply(reply_to, result, &mut output);
        output
    }

    fn handshake_output(&mut self) -> Vec<Bytes> {
        let Server::Handshake(handshake) = &mut self.server else {
            return Vec::new();
        };
        let output = std::iter::from_fn(|| handshake.poll_output()).collect();
        match handshake.poll_event() {
            Some(HandshakeEvent::Transmission { transmission, .. }) => {
                self.structured = transmission.negotiated().structured_replies;
                self.server = Server::Transmission(transmission);
            }
            Some(HandshakeEvent::Aborted) => self.server = Server::Ended,
            None => {}
        }
        output
    }

    fn take_requests(&mut self, max_in_flight: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        let Server::Transmission(transmission) = &mut self.server else {
            return taken;
        };
        while let Some(incoming) = transmission
            .poll_request()
            .expect("the session keeps the rules of transmission")
        {
            match incoming {
                Incoming::Request {
                    reply_to,
                    flags,
                    command,
                } => {
                    self.in_flight += cost(&command, self.structured);
                    assert!(
                        self.in_flight <= max_in_flight,
                        "{} bytes are in flight",
                        self.in_flight
                    );
                    self.requests
                        .insert(self.next_request, (reply_to, flags, command));
                    taken.push(self.next_request);
                    self.next_request += 1;
                }
                Incoming::Refused { failure, .. } => {
                    panic!("the session asked for what it may not: {failure}")
                }
                Incoming::Disconnect => {
                    self.server = Server::Ended;
                    break;
                }
            }
        }
        taken
    }
}

/// What the reply to `command` and its data take on the way, in bytes.
fn cost(command: &Command, structured: bool) -> u64 {
    let header = if structured { 28 } else { 16 };
    match command {
        Command::Read { .. } | Command::Write { .. } => header + command.length(),
        _ => header,
    }
}
