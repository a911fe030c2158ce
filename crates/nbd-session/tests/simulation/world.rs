//! The world of one schedule: virtual time, the wires between session and page, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::Payload;
use nbd_session::control::{PageMessage, ServerMessage};
use nbd_session::{
    Closing, DevicePhase, EndReason, LinkId, LinkKind, Output, Session, SessionConfig,
    SessionEvent, StoreAction, StoreId, Volume, close,
};

use crate::connection::Connection;
use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::page::{Offer, Page};
use crate::random::Random;
use crate::statistics::Statistics;

/// Virtual time is counted in microseconds.
const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// Until here things go wrong and the machine asks.
const TROUBLE: u64 = 120 * SECOND;
/// By then everything is answered, even if requests are late twice and links between them, one after the other.
const REST: u64 = TROUBLE + 20_000 * SECOND;
/// More than happens in any schedule that comes to rest.
const MAX_EVENTS: u64 = 100_000;

/// What happens at a moment.
enum Event {
    /// Bytes arrive at the page's end of a connection.
    ToPage { connection: usize, data: Bytes },
    /// Something arrives at the session's end.
    ToSession { connection: usize, message: Message },
    /// The page carries out a request.
    Execute { connection: usize, request: u64 },
    /// The page answers a request that was carried out.
    Reply { connection: usize, request: u64 },
    /// The page learns that its connection is gone.
    PageHears { connection: usize },
    /// The page connects, unless it is connected anyway.
    Connect { offer: Offer, anyway: bool },
    /// The peer answers a ping.
    Pong { connection: usize },
    /// The store of the kept copy has done a task.
    Stored {
        task: StoreId,
        result: Result<Payload, String>,
    },
    /// The machine asks for something.
    Ask,
    /// Something goes wrong.
    Trouble,
    /// The program ends the session.
    End,
}

enum Message {
    Data(Bytes),
    Text(String),
    Closed(Closing),
}

pub(crate) struct World {
    random: Random,
    epoch: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    config: SessionConfig,
    volume: Volume,
    machine: Option<Machine>,
    page: Page,
    connections: Vec<Connection>,
    writable: bool,
    /// The kinds of link that the page opens.
    kinds: &'static [LinkKind],
    /// When the page goes away for good.
    leaves: u64,
    /// How long connections take, at most.
    latency: u64,
    /// Nobody answers for so long that requests may fail, or are given up.
    stalled: bool,
    keeper: Option<Keeper>,
    /// The session has its copy, and needs no link.
    independent: bool,
    held: bool,
    alone: bool,
    ended: bool,
    statistics: Statistics,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let writable = random.percent(50);
        let max_request = random.pick(&[4096, 16 << 10, 64 << 10]);
        let config = SessionConfig {
            hold: Duration::from_secs(random.pick(&[0, 2, 20, 60, 300])),
            max_request,
            max_in_flight: u64::from(max_request) * random.between(1, 4) + 64,
            replay_limit: random.pick(&[0, 64 << 10]),
            seed: random.next(),
            ..SessionConfig::default()
        };
        let mut page = Page::new(&mut random, writable);
        if random.percent(20) {
            page.hang = random.pick(&[1, 10, 50, 100]);
        }
        if random.percent(10) {
            page.errors = random.pick(&[1, 10, 50]);
        }
        let keeper = random.percent(60).then(|| Keeper::new(&mut random));
        Self {
            writable,
            kinds: random.pick(&[
                &[LinkKind::V1],
                &[LinkKind::Plain],
                &[LinkKind::V1, LinkKind::Plain],
            ]),
            leaves: if random.percent(25) {
                random.below(TROUBLE)
            } else {
                u64::MAX
            },
            latency: random.pick(&[0, MS, 50 * MS, SECOND]),
            random,
            epoch: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            volume: Volume::new(Session::new(config.clone())),
            config,
            machine: None,
            page,
            connections: Vec::new(),
            stalled: false,
            keeper,
            independent: false,
            held: false,
            alone: false,
            ended: false,
            statistics: Statistics::default(),
        }
    }

    /// Runs until everything is answered and the session has ended.
    pub(crate) fn run(mut self) -> Statistics {
        if std::env::var_os("SIM_SEED").is_some() {
            eprintln!(
                "{:?} {:?} hang {} errors {} writable {} leaves {}",
                self.config,
                self.page.export,
                self.page.hang,
                self.page.errors,
                self.writable,
                self.leaves
            );
        }
        let offer = if self.random.percent(5) {
            Offer::Inconsistent
        } else {
            Offer::Right
        };
        self.at(
            0,
            Event::Connect {
                offer,
                anyway: true,
            },
        );
        self.at(SECOND, Event::Trouble);
        for _ in 0..MAX_EVENTS {
            if self.is_at_rest() {
                self.finish();
                return self.statistics;
            }
            self.step();
        }
        panic!("the schedule does not come to rest");
    }

    fn is_at_rest(&self) -> bool {
        let unanswered = self.machine.as_ref().map_or(0, Machine::outstanding);
        assert!(
            self.now < REST || unanswered == 0,
            "{unanswered} requests wait for ever"
        );
        self.now > TROUBLE && unanswered == 0 || self.now >= REST
    }

    fn finish(&mut self) {
        let now = self.instant();
        self.volume.end(now, EndReason::Ejected);
        self.drain();
        assert!(self.ended && self.volume.is_ended());
        assert_eq!(self.volume.poll_timeout(), None);
        self.ask();
    }

    /// Lets time pass until the next thing happens.
    fn step(&mut self) {
        let timer = self
            .volume
            .poll_timeout()
            .map(|at| u64::try_from((at - self.epoch).as_micros()).unwrap());
        let event = self.queue.peek().map(|Reverse((at, _))| *at);
        match (timer, event) {
            (Some(timer), event) if event.is_none_or(|event| timer <= event) => {
                self.now = self.now.max(timer);
                self.volume.handle_timeout(self.instant());
            }
            (_, Some(_)) => {
                let Reverse((at, number)) = self.queue.pop().unwrap();
                self.now = at;
                let event = self.events.remove(&number).unwrap();
                self.happen(event);
            }
            _ => self.now = REST,
        }
        self.drain();
    }

    fn happen(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::ToPage { connection, data } => self.page_receives(connection, data),
            Event::ToSession {
                connection,
                message,
            } => self.session_receives(connection, message),
            Event::Execute {
                connection,
                request,
            } => self.execute(connection, request),
            Event::Reply {
                connection,
                request,
            } => self.reply(connection, request),
            Event::PageHears { connection } => self.page_hears(connection),
            Event::Connect { offer, anyway } => {
                if anyway || self.connections.last().is_none_or(|last| last.dead) {
                    self.connect(offer);
                }
            }
            Event::Pong { connection } => {
                let connection_now = &self.connections[connection];
                if !connection_now.silent && !connection_now.gone {
                    self.volume.handle_alive(now, connection_now.link);
                    self.after(5 * SECOND, Event::Pong { connection });
                }
            }
            Event::Stored { task, result } => self.volume.handle_stored(now, task, result),
            Event::Ask => self.ask(),
            Event::Trouble => self.trouble(),
            Event::End => self.volume.end(now, EndReason::Bye),
        }
    }

    fn connect(&mut self, offer: Offer) {
        if self.now >= self.leaves || self.ended {
            return;
        }
        for older in &mut self.connections {
            older.dead = true;
        }
        let kind = self.random.pick(self.kinds);
        let link = self.volume.open_link(self.instant(), kind);
        self.page.unflushed = 0;
        let mut connection = Connection::new(link, kind, offer, &self.page);
        let (text, greeting) = connection.open(&self.page);
        self.connections.push(connection);
        let connection = self.connections.len() - 1;
        if let Some(text) = text {
            self.to_session(connection, Message::Text(text));
        }
        self.send_to_session(connection, greeting);
        self.after(5 * SECOND, Event::Pong { connection });
    }

    fn page_receives(&mut self, connection: usize, data: Bytes) {
        // Requests that were given up count no more, but are few.
        let given_up = if self.may_fail() {
            16 * u64::from(self.config.max_request)
        } else {
            0
        };
        let here = &mut self.connections[connection];
        if here.silent || here.dead {
            return;
        }
        let (output, requests) = here.receive(data, self.config.max_in_flight + given_up);
        self.send_to_session(connection, output);
        for request in requests {
            if !self.random.percent(self.page.hang) {
                let delay = self.random.below(2 * self.latency + 2);
                self.after(
                    delay,
                    Event::Execute {
                        connection,
                        request,
                    },
                );
            }
        }
    }

    fn execute(&mut self, connection: usize, request: u64) {
        let here = &mut self.connections[connection];
        if !here.dead {
            here.execute(&mut self.page, &mut self.random, request);
            self.check_unflushed();
            let delay = self.random.below(2 * self.latency + 2);
            self.after(
                delay,
                Event::Reply {
                    connection,
                    request,
                },
            );
        }
    }

    fn reply(&mut self, connection: usize, request: u64) {
        let here = &mut self.connections[connection];
        if !here.dead {
            let output = here.reply(request);
            self.send_to_session(connection, output);
        }
    }

    /// What a session would have to replay is bounded.
    fn check_unflushed(&self) {
        let log = self
            .config
            .replay_limit
            .max(2 * u64::from(self.config.max_request));
        let bound = log + 2 * self.config.max_in_flight;
        let is_bounded = self.page.unflushed <= bound || !self.page.has_flush() || self.may_fail();
        assert!(is_bounded, "{} bytes are not flushed", self.page.unflushed);
    }

    fn page_hears(&mut self, connection: usize) {
        if !std::mem::replace(&mut self.connections[connection].dead, true) {
            let delay = self.random.below(4 * SECOND);
            let offer = self.next_offer();
            self.after(
                delay,
                Event::Connect {
                    offer,
                    anyway: false,
                },
            );
        }
    }

    /// What the page will serve next: often enough another image, as long as there is trouble.
    fn next_offer(&mut self) -> Offer {
        let others = [
            Offer::OtherSize,
            Offer::OtherName,
            Offer::Modified,
            Offer::OtherAbilities,
            Offer::Inconsistent,
        ];
        if self.now > TROUBLE || self.machine.is_none() || self.random.percent(80) {
            return Offer::Right;
        }
        // Only what was seen can be compared, and what was written is not.
        let seen = self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.read > 0);
        if seen && !self.writable && self.random.percent(50) {
            Offer::OtherContent
        } else {
            self.random.pick(&others)
        }
    }

    fn session_receives(&mut self, connection: usize, message: Message) {
        let now = self.instant();
        let here = &mut self.connections[connection];
        if here.silent {
            return;
        }
        // Messages of forgotten links arrive, too: the session has to ignore them.
        match message {
            Message::Data(data) => self.volume.handle_data(now, here.link, data),
            Message::Text(text) => self.volume.handle_text(now, here.link, &text),
            Message::Closed(closing) => {
                here.gone = true;
                self.volume.handle_closed(now, here.link, closing);
            }
        }
    }

    fn ask(&mut self) {
        let now = self.instant();
        let Some(machine) = &mut self.machine else {
            return;
        };
        for _ in 0..self.random.between(1, 4) {
            if machine.outstanding() < 24 {
                let (id, flags, command) = machine.ask(&mut self.random, self.writable);
                if std::env::var_os("SIM_SEED").is_some() {
                    eprintln!(
                        "{}: {id:?} {flags:?} {:?} {}+{}",
                        self.now / 1000,
                        command.command_type(),
                        command.offset() / 512,
                        command.length() / 512
                    );
                }
                self.volume.submit(now, id, flags, command);
            }
        }
        if self.ended {
            self.drain();
            let unanswered = self.machine.as_ref().map_or(0, Machine::outstanding);
            assert_eq!(unanswered, 0, "requests wait after the end");
            self.statistics.count("answered after the end");
        } else if self.now < TROUBLE {
            let pause = self.random.below(4 * SECOND);
            self.after(pause, Event::Ask);
        }
    }

    fn trouble(&mut self) {
        if self.now > TROUBLE || self.ended {
            return;
        }
        let pause = self.random.between(10 * MS, 20 * SECOND);
        self.after(pause, Event::Trouble);
        let Some(connection) = self.connections.len().checked_sub(1) else {
            return;
        };
        match self.random.below(100) {
            0..35 => self.cut(connection),
            35..45 => {
                self.page.store.crash(&mut self.random);
                self.statistics.count("crashes");
                self.connections[connection].dead = true;
                self.cut(connection);
                self.after(
                    SECOND,
                    Event::Connect {
                        offer: Offer::Right,
                        anyway: true,
                    },
                );
            }
            45..60 => self.silence(connection),
            60..75 => {
                let offer = self.next_offer();
                self.happen(Event::Connect {
                    offer,
                    anyway: true,
                });
            }
            75..85 => self.misbehave(connection),
            85..86 => self.to_session(connection, Message::Closed(Closing::Clean)),
            86..87 if self.connections[connection].kind == LinkKind::V1 => {
                self.to_session(connection, Message::Text(PageMessage::Bye.encode()))
            }
            87..88 => self.volume.drain(self.instant(), EndReason::Ejected),
            88..89 => self.volume.end(self.instant(), EndReason::Ejected),
            _ => {}
        }
    }

    /// A connection is lost: what is on its way may arrive or not, and each side learns it in its own time.
    fn cut(&mut self, connection: usize) {
        if self.random.percent(50) {
            self.connections[connection].silent = true;
        }
        let link = self.connections[connection].link;
        let lost = || Closing::Lost("reset by peer".into());
        if self.connections[connection].silent && !self.connections[connection].gone {
            self.connections[connection].gone = true;
            self.volume.handle_closed(self.instant(), link, lost());
        }
        self.to_session(connection, Message::Closed(lost()));
        let delay = self.random.below(10 * SECOND);
        self.after(delay, Event::PageHears { connection });
    }

    /// Nothing passes any more, and nobody says so.
    fn silence(&mut self, connection: usize) {
        let here = &mut self.connections[connection];
        here.silent = true;
        // Nothing but a late request shows that a plain link is silent.
        self.stalled |= here.kind == LinkKind::Plain;
        let delay = self.random.between(SECOND, 60 * SECOND);
        self.after(delay, Event::PageHears { connection });
    }

    /// The page breaks a rule.
    fn misbehave(&mut self, connection: usize) {
        let nonsense = match self.random.below(3) {
            0 => Message::Data(Bytes::from_static(&[0xff; 64])),
            1 => Message::Text("{".into()),
            _ => Message::Text(r#"{"type":"image","name":"again","size":1}"#.into()),
        };
        self.connections[connection].misbehaved = true;
        self.to_session(connection, nonsense);
    }

    /// Does what the session wants done.
    fn drain(&mut self) {
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { link, data } => {
                    let connection = self.connection(link);
                    let here = &mut self.connections[connection];
                    let at =
                        (self.now + self.random.below(self.latency + 1)).max(here.page_has_until);
                    here.page_has_until = at;
                    self.at(at, Event::ToPage { connection, data });
                }
                Output::SendText { link, text } => {
                    let connection = self.connection(link);
                    assert_eq!(self.connections[connection].kind, LinkKind::V1);
                    ServerMessage::parse(&text).expect("what the session says can be understood");
                }
                Output::Close { link, code, reason } => self.closed_by_session(link, code, &reason),
                Output::Complete { request, result } => {
                    if std::env::var_os("SIM_SEED").is_some() {
                        eprintln!("{}: {request:?} {}", self.now / 1000, result.is_ok());
                    }
                    let may_fail = self.may_fail() || self.volume.is_ended();
                    let may_lose = self.may_fail() && self.writable;
                    self.statistics
                        .count(if result.is_ok() { "answered" } else { "failed" });
                    let machine = self
                        .machine
                        .as_mut()
                        .expect("nothing is answered before it is asked");
                    machine.answer(request, result, may_fail, may_lose);
                }
                Output::Store { task, action } => self.store(task, action),
                Output::Event(event) => self.notice(event),
            }
        }
    }

    /// The store does its tasks in order, and answers in its own time.
    fn store(&mut self, task: StoreId, action: StoreAction) {
        let keeper = self.keeper.as_mut().expect("nothing is stored unasked");
        let result = keeper.carry_out(&mut self.random, action);
        let delay = self.random.below(self.latency + 2);
        keeper.done_at = (self.now + delay).max(keeper.done_at);
        let at = keeper.done_at;
        self.at(at, Event::Stored { task, result });
    }

    fn closed_by_session(&mut self, link: LinkId, code: u16, reason: &str) {
        let connection = self.connection(link);
        self.connections[connection].gone = true;
        assert!(!reason.is_empty() && reason.len() <= 123);
        self.statistics.count(match code {
            close::NORMAL => "link closed: 1000",
            close::PROTOCOL_ERROR => "link closed: 1002",
            close::BAD_IMAGE => "link closed: 4400",
            close::TIMEOUT => "link closed: 4408",
            close::OTHER_IMAGE => "link closed: 4410",
            close::SUPERSEDED => "link closed: 4412",
            _ => panic!("closed with {code}: {reason}"),
        });
        let here = &self.connections[connection];
        let has_cause = match code {
            close::PROTOCOL_ERROR => here.misbehaved,
            close::BAD_IMAGE => here.offer != Offer::Right,
            close::OTHER_IMAGE => here.offer != Offer::Right || self.page.errors > 0,
            close::TIMEOUT => here.silent || self.may_fail() || self.volume.is_ended(),
            _ => true,
        };
        assert!(has_cause, "closed without a cause: {code} {reason}");
        let delay = self.random.below(self.latency + SECOND);
        self.after(delay, Event::PageHears { connection });
    }

    fn notice(&mut self, event: SessionEvent) {
        if std::env::var_os("SIM_SEED").is_some() {
            eprintln!("{}: {event:?}", self.now / 1000);
        }
        assert!(!self.ended, "{event:?} after the end");
        match event {
            SessionEvent::Ready(_) => {
                let geometry = self
                    .volume
                    .geometry()
                    .expect("what is ready has a geometry");
                self.machine = Some(Machine::new(geometry));
                let now = self.instant();
                self.volume
                    .set_device(now, DevicePhase::Attached, Some("/dev/nbd0".into()));
                if self.keeper.is_some() {
                    self.volume.begin_keep(now);
                }
                self.after(0, Event::Ask);
            }
            SessionEvent::Held { until, .. } => {
                assert!(!std::mem::replace(&mut self.held, true), "held twice");
                assert!(!self.independent, "held with a whole copy");
                assert!(until > self.instant());
                self.alone = false;
                self.statistics.count("held");
            }
            SessionEvent::Resumed => {
                let held = std::mem::take(&mut self.held);
                let alone = std::mem::take(&mut self.alone);
                assert!(held != alone, "resumed without being held");
                self.check_resumed();
                self.statistics.count("resumed");
            }
            SessionEvent::Whole => {
                assert!(!std::mem::replace(&mut self.independent, true));
                self.statistics.count("copy: whole");
            }
            SessionEvent::Alone { .. } => {
                assert!(self.independent, "nobody has the image");
                assert!(!std::mem::replace(&mut self.alone, true), "alone twice");
                self.held = false;
                self.statistics.count("copy: alone");
            }
            SessionEvent::KeepLost(_) => {
                let keeper = self.keeper.as_ref().expect("there is a copy");
                assert!(keeper.failed, "the copy was given up without a cause");
                if std::mem::take(&mut self.independent) {
                    self.statistics.count("copy: lost when whole");
                }
                self.statistics.count("copy: lost");
            }
            SessionEvent::Ending(_) => {
                let delay = self.random.below(5 * SECOND);
                self.after(delay, Event::End);
            }
            SessionEvent::Ended(reason) => {
                self.ended = true;
                let of_links = matches!(
                    reason,
                    EndReason::Closed | EndReason::HoldExpired | EndReason::LinkLost(_)
                );
                assert!(!self.independent || !of_links, "ended for want of a link");
                let unanswered = self.machine.as_ref().map_or(0, Machine::outstanding);
                assert_eq!(unanswered, 0, "ended before everything was answered");
                self.statistics.count(match reason {
                    EndReason::Bye => "ended: bye",
                    EndReason::Closed => "ended: closed",
                    EndReason::Ejected => "ended: ejected",
                    EndReason::HoldExpired => "ended: hold-expired",
                    EndReason::LinkLost(_) => "ended: link-lost",
                    EndReason::Refused(_) => "ended: refused",
                    reason => panic!("ended: {reason}"),
                });
            }
        }
    }

    /// A link that resumes offers the session's image, as far as its kind lets one see.
    fn check_resumed(&self) {
        let offer = self.connections.last().unwrap().offer;
        let same = match self.kinds {
            [LinkKind::V1] => offer == Offer::Right || offer == Offer::Modified && self.writable,
            [LinkKind::Plain] => {
                matches!(offer, Offer::Right | Offer::Modified | Offer::Inconsistent)
            }
            _ => !matches!(
                offer,
                Offer::OtherSize | Offer::OtherContent | Offer::OtherAbilities
            ),
        };
        assert!(same, "resumed with {offer:?}");
    }

    /// Whether the page, or its silence, justifies that requests fail and that writes are given up.
    fn may_fail(&self) -> bool {
        self.stalled || self.page.hang > 0 || self.page.errors > 0
    }

    /// The connection of a link that the session may still use.
    fn connection(&self, link: LinkId) -> usize {
        let found = self
            .connections
            .iter()
            .rposition(|connection| connection.link == link)
            .expect("links are known");
        assert!(
            !self.connections[found].gone,
            "the session uses a link that is gone"
        );
        found
    }

    /// Bytes from page to session, split or joined by chance.
    fn send_to_session(&mut self, connection: usize, parts: Vec<Bytes>) {
        match self.random.below(4) {
            0 => {
                let joined = Bytes::from(parts.concat());
                self.to_session(connection, Message::Data(joined));
            }
            1 => {
                for mut part in parts {
                    while part.len() > 1 && self.random.percent(80) {
                        let at = usize::try_from(self.random.below(part.len() as u64)).unwrap();
                        let first = part.split_to(at);
                        self.to_session(connection, Message::Data(first));
                    }
                    self.to_session(connection, Message::Data(part));
                }
            }
            _ => parts
                .into_iter()
                .for_each(|part| self.to_session(connection, Message::Data(part))),
        }
    }

    fn to_session(&mut self, connection: usize, message: Message) {
        let here = &mut self.connections[connection];
        let at = (self.now + self.random.below(self.latency + 1)).max(here.session_has_until);
        here.session_has_until = at;
        self.at(
            at,
            Event::ToSession {
                connection,
                message,
            },
        );
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Events at the same time happen in the order they were planned.
    fn at(&mut self, at: u64, event: Event) {
        self.queue.push(Reverse((at, self.next_event)));
        self.events.insert(self.next_event, event);
        self.next_event += 1;
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }
}
