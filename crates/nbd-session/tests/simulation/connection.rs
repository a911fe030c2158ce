//! One connection of the page: the server's side of NBD, and a log of what it has to do.

use std::collections::HashMap;

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo, Transmission};
use nbd::wire::{CommandFlags, TransmissionFlags};
use nbd::{Command, Failure, Reply};
use nbd_session::control::PageMessage;
use nbd_session::{ImageInfo, LinkId, LinkKind};

use crate::page::{Offer, Page};
use crate::random::Random;

/// One connection of a page.
pub(crate) struct Connection {
    pub(crate) link: LinkId,
    pub(crate) kind: LinkKind,
    pub(crate) offer: Offer,
    /// The page does nothing for it any more.
    pub(crate) dead: bool,
    /// Nothing passes, in either direction, and nobody notices.
    pub(crate) silent: bool,
    /// The page broke a rule on it.
    pub(crate) misbehaved: bool,
    /// The session has closed it, or knows that it is gone.
    pub(crate) gone: bool,
    /// When the last message to the page, or to the session, arrives: messages keep their order.
    pub(crate) page_has_until: u64,
    pub(crate) session_has_until: u64,
    server: Server,
    requests: HashMap<u64, Request>,
    next_request: u64,
    in_flight: u64,
    structured: bool,
    last_reply: Vec<Bytes>,
}

/// A request without a reply.
struct Request {
    reply_to: ReplyTo,
    flags: CommandFlags,
    command: Command,
    result: Option<Result<Reply, Failure>>,
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
            misbehaved: false,
            gone: false,
            page_has_until: 0,
            session_has_until: 0,
            server: Server::Handshake(Handshake::new(vec![export], HandshakeLimits::default())),
            requests: HashMap::new(),
            next_request: 0,
            in_flight: 0,
            structured: false,
            last_reply: Vec::new(),
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

    /// Carries out a request. Its reply may come later, after others.
    pub(crate) fn execute(&mut self, page: &mut Page, random: &mut Random, number: u64) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.result =
                Some(page.execute(random, self.offer, request.flags, &request.command));
        }
    }

    /// The reply to a request that was carried out.
    pub(crate) fn reply(&mut self, number: u64) -> Vec<Bytes> {
        let mut output = Vec::new();
        if let Server::Transmission(transmission) = &mut self.server
            && let Some(Request {
                reply_to,
                command,
                result: Some(result),
                ..
            }) = self.requests.remove(&number)
        {
            self.in_flight -= cost(&command, self.structured);
            transmission.reply(reply_to, result, &mut output);
            self.last_reply.clone_from(&output);
        }
        output
    }

    /// The reply that was sent last, again.
    pub(crate) fn duplicate(&self) -> Bytes {
        self.last_reply.concat().into()
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
            Some(HandshakeEvent::Aborted | HandshakeEvent::StartTls(_)) => {
                self.server = Server::Ended;
            }
            None => {}
        }
        output
    }

    fn take_requests(&mut self, max_in_flight: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        while let Server::Transmission(transmission) = &mut self.server {
            let incoming = transmission
                .poll_request()
                .expect("the session keeps the rules of transmission");
            match incoming {
                Some(Incoming::Request {
                    reply_to,
                    flags,
                    command,
                }) => {
                    self.in_flight += cost(&command, self.structured);
                    assert!(
                        self.in_flight <= max_in_flight,
                        "{} bytes are in flight",
                        self.in_flight
                    );
                    self.check_order(&command);
                    let request = Request {
                        reply_to,
                        flags,
                        command,
                        result: None,
                    };
                    self.requests.insert(self.next_request, request);
                    taken.push(self.next_request);
                    self.next_request += 1;
                }
                Some(Incoming::Refused { failure, .. }) => {
                    panic!("the session asked for what it may not: {failure}")
                }
                Some(Incoming::Disconnect) => self.server = Server::Ended,
                None => break,
            }
        }
        taken
    }

    /// The server may carry out requests in any order: two writes to the same place must not be under way.
    fn check_order(&self, command: &Command) {
        let end = |command: &Command| command.offset() + command.length();
        let meets = |other: &Command| {
            other.is_write() && other.offset() < end(command) && command.offset() < end(other)
        };
        let conflict = self
            .requests
            .values()
            .find(|request| command.is_write() && meets(&request.command));
        assert!(
            conflict.is_none(),
            "two writes to the same place are under way"
        );
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
