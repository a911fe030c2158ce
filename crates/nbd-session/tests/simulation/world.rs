//! The world of one schedule: virtual time, the wires between session and page, and what goes wrong.

use std::time::Duration;

use bytes::Bytes;
use nbd_session::{EndReason, LinkId, LinkKind, Session, SessionConfig, Volume};

use crate::agenda::{Agenda, MILLISECOND, SECOND};
use crate::connection::Connection;
use crate::event::{Event, Message};
use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::page::{Offer, Page};
use crate::random::Random;
use crate::restart::Note;
use crate::statistics::Statistics;

/// Until here things go wrong and the machine asks.
pub(crate) const TROUBLE: u64 = 120 * SECOND;
/// By then everything is answered, even if requests are late twice and links between them, one after the other.
const REST: u64 = TROUBLE + 20_000 * SECOND;
/// More than happens in any schedule that comes to rest.
const MAX_EVENTS: u64 = 100_000;

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) config: SessionConfig,
    /// How much memory the volume may take, in bytes.
    pub(crate) cache: u64,
    pub(crate) volume: Volume,
    pub(crate) machine: Option<Machine>,
    pub(crate) page: Page,
    pub(crate) connections: Vec<Connection>,
    pub(crate) writable: bool,
    /// The kinds of link that the page opens.
    pub(crate) kinds: &'static [LinkKind],
    /// When the page goes away for good.
    pub(crate) leaves: u64,
    /// How long connections take, at most.
    pub(crate) latency: u64,
    /// The page still answers on connections that it has left.
    lingers: bool,
    /// Nobody answers for so long that requests may fail, or are given up.
    pub(crate) stalled: bool,
    pub(crate) keeper: Option<Keeper>,
    /// The session has its copy, and needs no link.
    pub(crate) independent: bool,
    pub(crate) held: bool,
    pub(crate) alone: bool,
    pub(crate) ended: bool,
    /// What the program has noted of the session.
    pub(crate) noted: Option<Note>,
    /// How often the program was started anew.
    pub(crate) incarnation: u64,
    pub(crate) statistics: Statistics,
    /// One schedule alone is told.
    is_replay: bool,
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
        // Writes are carried out for the newest connection alone.
        let lingers = !writable && random.percent(50);
        let cache = random.pick(&[0, 0, 8 << 10, 40 << 10, 1 << 20]);
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
            latency: random.pick(&[0, MILLISECOND, 50 * MILLISECOND, SECOND]),
            random,
            agenda: Agenda::new(),
            cache,
            volume: Volume::new(Session::new(config.clone())).with_cache(cache),
            config,
            machine: None,
            page,
            connections: Vec::new(),
            lingers,
            stalled: false,
            keeper,
            independent: false,
            held: false,
            alone: false,
            ended: false,
            noted: None,
            incarnation: 0,
            statistics: Statistics::default(),
            is_replay: std::env::var_os("SIM_SEED").is_some(),
        }
    }

    /// Runs until everything is answered and the session has ended.
    pub(crate) fn run(mut self) -> Statistics {
        let (hang, errors) = (self.page.hang, self.page.errors);
        self.log(format_args!(
            "{:?} {:?} hang {hang}% errors {errors}%",
            self.config, self.page.export
        ));
        let offer = if self.random.percent(5) {
            Offer::Inconsistent
        } else {
            Offer::Right
        };
        self.agenda.at(
            0,
            Event::Connect {
                offer,
                anyway: true,
            },
        );
        self.agenda.at(SECOND, Event::Trouble);
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
        let unanswered = self.unanswered();
        assert!(
            self.agenda.now < REST || unanswered == 0,
            "{unanswered} requests wait for ever"
        );
        self.agenda.now > TROUBLE && unanswered == 0 || self.agenda.now >= REST
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.machine.as_ref().map_or(0, Machine::outstanding)
    }

    fn finish(&mut self) {
        let now = self.agenda.instant();
        self.volume.end(now, EndReason::Ejected);
        self.drain();
        assert!(self.ended && self.volume.is_ended());
        assert_eq!(self.volume.poll_timeout(), None);
        self.ask();
    }

    /// Lets time pass until the next thing happens.
    fn step(&mut self) {
        let timer = self.volume.poll_timeout().map(|at| self.agenda.time_of(at));
        match (timer, self.agenda.next_at()) {
            (Some(timer), next) if next.is_none_or(|next| timer <= next) => {
                self.agenda.now = self.agenda.now.max(timer);
                self.time_passes();
            }
            _ => match self.agenda.take_next() {
                Some(event) => self.happen(event),
                None => self.agenda.now = REST,
            },
        }
        self.drain();
    }

    fn time_passes(&mut self) {
        let newest = self.connections.last();
        let compared = self.held && newest.is_some_and(|link| !link.gone && !link.silent);
        self.volume.handle_timeout(self.agenda.instant());
        if compared && self.volume.is_ended() {
            self.statistics
                .count("hold expired while a link is compared");
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        let now = self.agenda.instant();
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
                    self.agenda.after(5 * SECOND, Event::Pong { connection });
                }
            }
            Event::Stored {
                incarnation,
                task,
                result,
            } => {
                if incarnation == self.incarnation {
                    self.volume.handle_stored(now, task, result);
                }
            }
            Event::Ask => self.ask(),
            Event::Trouble => self.trouble(),
            Event::End => self.volume.end(now, EndReason::Bye),
        }
    }

    fn connect(&mut self, offer: Offer) {
        if self.agenda.now >= self.leaves || self.ended {
            return;
        }
        for older in &mut self.connections {
            older.dead = true;
        }
        let offer = self.possible(offer);
        let kind = self.random.pick(self.kinds);
        let link = self.volume.open_link(self.agenda.instant(), kind);
        self.page.unflushed = 0;
        self.greet(link, kind, offer);
    }

    /// Another page would like to take over.
    pub(crate) fn challenge(&mut self) {
        if self.agenda.now >= self.leaves || self.writable {
            return;
        }
        let offer = self.next_offer();
        let kind = self.random.pick(self.kinds);
        let link = self.volume.challenge(self.agenda.instant(), kind);
        self.greet(link, kind, offer);
    }

    fn greet(&mut self, link: LinkId, kind: LinkKind, offer: Offer) {
        let mut connection = Connection::new(link, kind, offer, &self.page);
        let (text, greeting) = connection.open(&self.page);
        self.connections.push(connection);
        let connection = self.connections.len() - 1;
        if let Some(text) = text {
            self.deliver(connection, Message::Text(text));
        }
        self.send_to_session(connection, greeting);
        self.agenda.after(5 * SECOND, Event::Pong { connection });
    }

    fn page_receives(&mut self, connection: usize, data: Bytes) {
        // Requests that were given up count no more, but are few.
        let given_up = if self.may_fail() {
            16 * u64::from(self.config.max_request)
        } else {
            0
        };
        let here = &mut self.connections[connection];
        if here.silent || here.dead && !self.lingers {
            return;
        }
        let (output, requests) = here.receive(data, self.config.max_in_flight + given_up);
        self.send_to_session(connection, output);
        for request in requests {
            if !self.random.percent(self.page.hang) {
                let delay = self.random.below(2 * self.latency + 2);
                self.agenda.after(
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
        if !here.dead || self.lingers {
            here.execute(&mut self.page, &mut self.random, request);
            self.check_unflushed();
            let delay = self.random.below(2 * self.latency + 2);
            self.agenda.after(
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
        if !here.dead || self.lingers {
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
            self.agenda.after(
                delay,
                Event::Connect {
                    offer,
                    anyway: false,
                },
            );
        }
    }

    fn session_receives(&mut self, connection: usize, message: Message) {
        let now = self.agenda.instant();
        let here = &mut self.connections[connection];
        if here.silent {
            return;
        }
        // Messages of forgotten links arrive, too: the session has to ignore them.
        if here.gone && matches!(message, Message::Data(_)) {
            self.statistics.count("late data of older links");
        }
        match message {
            Message::Data(data) => self.volume.handle_data(now, here.link, data),
            Message::Text(text) => self.volume.handle_text(now, here.link, &text),
            Message::Closed(closing) => {
                here.gone = true;
                self.volume.handle_closed(now, here.link, closing);
            }
        }
    }

    pub(crate) fn ask(&mut self) {
        for _ in 0..self.random.between(1, 4) {
            let Some(machine) = self
                .machine
                .as_mut()
                .filter(|machine| machine.outstanding() < 24)
            else {
                break;
            };
            let (id, flags, command) = machine.ask(&mut self.random, self.writable);
            self.log(format_args!(
                "{id:?} asks {} at {}, {} bytes, {flags:?}",
                command.command_type(),
                command.offset(),
                command.length()
            ));
            self.volume
                .submit(self.agenda.instant(), id, flags, command);
        }
        if self.ended {
            self.drain();
            assert_eq!(self.unanswered(), 0, "requests wait after the end");
            self.statistics.count("answered after the end");
        } else if self.agenda.now < TROUBLE {
            let pause = self.random.below(4 * SECOND);
            self.agenda.after(pause, Event::Ask);
        }
    }

    /// Whether the page, or its silence, justifies that requests fail and that writes are given up.
    pub(crate) fn may_fail(&self) -> bool {
        self.stalled || self.page.hang > 0 || self.page.errors > 0
    }

    /// The connection of a link that the session may still use.
    pub(crate) fn connection(&self, link: LinkId) -> usize {
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
                self.deliver(connection, Message::Data(joined));
            }
            1 => {
                for mut part in parts {
                    while part.len() > 1 && self.random.percent(80) {
                        let at = usize::try_from(self.random.below(part.len() as u64)).unwrap();
                        let first = part.split_to(at);
                        self.deliver(connection, Message::Data(first));
                    }
                    self.deliver(connection, Message::Data(part));
                }
            }
            _ => parts
                .into_iter()
                .for_each(|part| self.deliver(connection, Message::Data(part))),
        }
    }

    pub(crate) fn deliver(&mut self, connection: usize, message: Message) {
        let here = &mut self.connections[connection];
        let at =
            (self.agenda.now + self.random.below(self.latency + 1)).max(here.session_has_until);
        here.session_has_until = at;
        self.agenda.at(
            at,
            Event::ToSession {
                connection,
                message,
            },
        );
    }

    /// Tells what happens, when one schedule is replayed.
    pub(crate) fn log(&self, what: std::fmt::Arguments<'_>) {
        if self.is_replay {
            eprintln!(
                "{:>9.3} {what}",
                Duration::from_micros(self.agenda.now).as_secs_f64()
            );
        }
    }
}
