//! One link: how far it is, what is on its way on it, and when the peer must have spoken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;
use nbd::client::{Handshake, HandshakeOptions, ReplyEvent, Transmission};
use nbd::wire::CommandFlags;
use nbd::{Command, Export, Failure, Reply};

use super::assembly::Assembly;
use super::config::{LinkId, LinkKind, SessionConfig};
use super::flight::{Arrival, Flight, Job, Landing, cost, is_long};
use super::pace::Pace;
use super::patience::Patience;
use super::requests::is_small_read;
use crate::control::ImageInfo;
use crate::reason::Fault;

/// Requests that were given up on this link; with this many it answers too little to be kept.
const MAX_ABANDONED: usize = 16;

/// Pieces of streamed requests that are shorter get memory of their own, in bytes.
const OWN: usize = 64 << 10;
/// How many text messages may come at once, and how soon after each of them another may. A peer has little to say:
/// which image it serves, that it goes, and what later versions add.
const TEXTS: u32 = 100;
const TEXT_PACE: Duration = Duration::from_millis(100);

/// How far a link is.
#[derive(Debug)]
pub(super) enum Stage {
    /// The NBD handshake.
    Handshake(Box<Handshake>),
    /// The image is compared with the session's.
    Comparing,
    /// Answered writes are done again.
    Replaying,
    /// The device is served.
    Serving,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) kind: LinkKind,
    pub(super) stage: Stage,
    /// What the peer announced in its `image` message.
    pub(super) image: Option<ImageInfo>,
    /// What is to be asked before the device is served.
    pub(super) agenda: VecDeque<Job>,
    transmission: Option<Transmission>,
    flights: HashMap<u64, Flight>,
    patience: Patience,
    pace: Pace,
    /// READs to which the message that is being read brought bytes.
    touched: Vec<u64>,
    /// How long that message is, in bytes.
    message: usize,
    cookie: u64,
    /// What the flights cost together, in bytes, and ...
    in_flight: u64,
    /// ... how much of that has come.
    arrived: u64,
    /// How many of the flights are long.
    long: usize,
    abandoned: usize,
    opened: Instant,
    heard: Instant,
    beaten: Instant,
    /// When all text messages so far would have come, at their pace.
    texts: Instant,
}

impl Link {
    /// A new link: the peer speaks first.
    pub(super) fn new(id: LinkId, kind: LinkKind, config: &SessionConfig, now: Instant) -> Self {
        let handshake = HandshakeOptions {
            export: config.export.clone(),
            structured_replies: true,
            base_allocation: true,
        };
        Self {
            id,
            kind,
            stage: Stage::Handshake(Box::new(Handshake::new(handshake))),
            image: None,
            agenda: VecDeque::new(),
            transmission: None,
            flights: HashMap::default(),
            patience: Patience::default(),
            pace: Pace::new(now),
            touched: Vec::new(),
            message: 0,
            cookie: 0,
            in_flight: 0,
            arrived: 0,
            long: 0,
            abandoned: 0,
            opened: now,
            heard: now,
            beaten: now,
            texts: now,
        }
    }

    /// Whether this link has shown that it serves the session's image.
    pub(super) fn is_trusted(&self) -> bool {
        matches!(self.stage, Stage::Replaying | Stage::Serving)
    }

    /// Whether the device's requests may be sent.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving)
    }

    /// Whether BLOCK_STATUS may be asked.
    pub(super) fn has_block_status(&self) -> bool {
        self.transmission
            .as_ref()
            .is_some_and(|transmission| transmission.negotiated().base_allocation)
    }

    /// The peer gave a sign of life.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A text message came. None of them is worth much, but each takes time that others could use.
    pub(super) fn count_text(&mut self, now: Instant) -> Result<(), Fault> {
        self.texts = self.texts.max(now) + TEXT_PACE;
        if self.texts > now + TEXT_PACE * TEXTS {
            return Err(Fault::violation(format_args!(
                "more than {TEXTS} text messages at once"
            )));
        }
        Ok(())
    }

    /// Takes bytes of the handshake. Gives what is to be sent, whatever comes of it, and the export when it is done.
    pub(super) fn shake_hands(
        &mut self,
        data: Bytes,
    ) -> (Vec<Bytes>, Result<Option<Export>, Fault>) {
        let Stage::Handshake(handshake) = &mut self.stage else {
            return (Vec::new(), Ok(None));
        };
        let taken = handshake.handle_input(data).map_err(Fault::violation);
        let output = std::iter::from_fn(|| handshake.poll_output()).collect();
        let finished = taken.is_ok().then(|| handshake.finish()).flatten();
        let export = finished.map(|(export, transmission)| {
            self.transmission = Some(transmission);
            export
        });
        (output, taken.map(|()| export))
    }

    /// Takes bytes of the transmission, to be followed by [`Self::poll_arrival`] and [`Self::settle`].
    pub(super) fn receive(&mut self, data: Bytes) {
        self.message = data.len();
        if let Some(transmission) = &mut self.transmission {
            transmission.handle_input(data);
        }
    }

    /// The next request that was answered completely, or bytes of a streamed one.
    pub(super) fn poll_arrival(&mut self, now: Instant) -> Result<Option<Arrival>, Fault> {
        while let Some(transmission) = &mut self.transmission {
            let Some(event) = transmission.poll_reply().map_err(Fault::violation)? else {
                break;
            };
            if let Some(arrival) = self.apply(now, event) {
                return Ok(Some(arrival));
            }
        }
        Ok(None)
    }

    fn apply(&mut self, now: Instant, event: ReplyEvent) -> Option<Arrival> {
        match event {
            ReplyEvent::Data {
                cookie,
                offset,
                data,
                certain,
            } => self.take_data(now, cookie, offset, data, certain),
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => {
                self.assembly_of(cookie)?.push_zeroes(offset, length);
                None
            }
            ReplyEvent::BlockStatus { cookie, extents } => {
                self.flights.get_mut(&cookie)?.extents = Some(extents);
                None
            }
            ReplyEvent::Done { cookie, result } => {
                self.land(now, cookie, result).map(Arrival::Landed)
            }
        }
    }

    fn take_data(
        &mut self,
        now: Instant,
        cookie: u64,
        offset: u64,
        data: Bytes,
        certain: bool,
    ) -> Option<Arrival> {
        let flight = self.flights.get_mut(&cookie)?;
        let length = data.len() as u64;
        self.pace.arrive(now, &mut flight.departure, length);
        let arrived = length.min(flight.cost - flight.arrived);
        flight.arrived += arrived;
        self.arrived += arrived;
        self.patience.hear(now, cookie);
        // What is streamed is kept, perhaps for long: it must not keep a whole message in memory.
        let data = if flight.is_streamed && data.len() < OWN.max(self.message / 4) {
            Bytes::copy_from_slice(&data)
        } else {
            data
        };
        flight.assembly.as_mut()?.push(offset, data.clone());
        if self.touched.last() != Some(&cookie) {
            self.touched.push(cookie);
        }
        match flight.job {
            Job::Request(number, _) if flight.is_streamed && certain => {
                Some(Arrival::Data(number, offset, data))
            }
            _ => None,
        }
    }

    /// The message has been read to its end.
    pub(super) fn settle(&mut self) {
        let length = self.message;
        for cookie in std::mem::take(&mut self.touched) {
            if let Some(assembly) = self.assembly_of(cookie) {
                assembly.settle(length);
            }
        }
    }

    /// Whether `command` fits into what may be on its way. Long requests leave a part to small reads, and keep to what
    /// the line carries: for that, what has come already of others does not count.
    pub(super) fn fits(&self, command: &Command, config: &SessionConfig) -> bool {
        let cost = self.cost(command);
        let fits = if is_small_read(command) {
            self.in_flight + cost <= config.max_in_flight
        } else {
            self.in_flight + cost <= held(config) && self.awaited() + cost <= self.most(config)
        };
        self.in_flight == 0 || fits
    }

    /// How much of what nobody waits for yet may be asked for at this moment, in bytes. What is waited for may be
    /// half as much again.
    pub(super) fn room(&self, config: &SessionConfig) -> u64 {
        let carried = self.reach(config).saturating_sub(self.awaited());
        carried.min((held(config) / 3 * 2).saturating_sub(self.in_flight))
    }

    /// The highest rate lately, in bytes a second.
    pub(super) fn rate(&self) -> u64 {
        self.pace.rate()
    }

    /// What the line carries in about a round trip, in bytes, as far as that may be asked for.
    pub(super) fn reach(&self, config: &SessionConfig) -> u64 {
        self.most(config) / 3 * 2
    }

    /// How much may be on its way of long requests, in bytes.
    fn most(&self, config: &SessionConfig) -> u64 {
        (self.pace.budget() / 2 * 3).min(held(config))
    }

    /// What has still to come, in bytes.
    fn awaited(&self) -> u64 {
        self.in_flight - self.arrived
    }

    /// Sends a request; gives its bytes, or the job back where the peer cannot be asked that.
    pub(super) fn send(
        &mut self,
        job: Job,
        flags: CommandFlags,
        command: &Command,
        is_streamed: bool,
        now: Instant,
    ) -> Result<Vec<Bytes>, Job> {
        let Some(transmission) = &mut self.transmission else {
            return Err(job);
        };
        let mut out = Vec::new();
        if transmission
            .request(self.cookie, flags, command, &mut out)
            .is_err()
        {
            return Err(job);
        }
        let cost = self.cost(command);
        let assembly = match command {
            Command::Read { offset, length } => Some(Assembly::new(*offset, *length)),
            _ => None,
        };
        self.flights.insert(
            self.cookie,
            Flight {
                job,
                cost,
                arrived: 0,
                departure: self.pace.depart(now, self.in_flight == 0),
                is_streamed,
                assembly,
                extents: None,
            },
        );
        self.patience.send(now, self.cookie);
        self.in_flight += cost;
        self.long += usize::from(is_long(cost));
        self.cookie += 1;
        Ok(out)
    }

    /// Whether anything long is on its way.
    pub(super) fn has_long(&self) -> bool {
        self.long > 0
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// The jobs on their way, in no order.
    pub(super) fn jobs(&self) -> impl ExactSizeIterator<Item = &Job> {
        self.flights.values().map(|flight| &flight.job)
    }

    /// The flights that should have landed by `now`.
    pub(super) fn take_overdue(&mut self, config: &SessionConfig, now: Instant) -> Vec<u64> {
        let mut overdue = self.patience.take_overdue(now, config.timeout);
        overdue.retain(|cookie| self.flights.contains_key(cookie));
        self.patience
            .settle(|cookie| self.flights.contains_key(&cookie));
        overdue
    }

    /// What the flight `cookie` is for.
    pub(super) fn job(&self, cookie: u64) -> Option<&Job> {
        self.flights.get(&cookie).map(|flight| &flight.job)
    }

    /// Waits for the flight `cookie` no more. Gives whether the link still answers enough to be kept.
    pub(super) fn abandon(&mut self, cookie: u64) -> bool {
        if let Some(flight) = self.flights.get_mut(&cookie) {
            self.in_flight -= flight.cost;
            self.arrived -= flight.arrived;
            self.long -= usize::from(is_long(flight.cost));
            flight.job = Job::Abandoned;
            (flight.cost, flight.arrived) = (0, 0);
            flight.assembly = None;
            self.abandoned += 1;
        }
        self.abandoned < MAX_ABANDONED
    }

    /// Ends NBD in order; gives the bytes to send.
    pub(super) fn disconnect(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        if let Some(transmission) = &mut self.transmission {
            transmission.disconnect(&mut out);
        }
        out
    }

    /// When [`Self::overdue`] or [`Self::take_overdue`] will have something to say, or a beat is due.
    pub(super) fn next_timeout(&self, config: &SessionConfig) -> Option<Instant> {
        let handshake =
            matches!(self.stage, Stage::Handshake(_)).then(|| self.opened + config.timeout);
        let flight = self.patience.deadline(config.timeout);
        let v1 = self.kind == LinkKind::V1;
        let silence = v1.then(|| self.heard + config.silence);
        let beat = v1.then(|| self.beaten + config.beat);
        [handshake, flight, silence, beat]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a beat is due at `now`; the next is due one interval later.
    pub(super) fn take_beat(&mut self, config: &SessionConfig, now: Instant) -> bool {
        let due = self.kind == LinkKind::V1 && self.beaten + config.beat <= now;
        if due {
            self.beaten = now;
        }
        due
    }

    /// What the peer, rather than a single request, is late with.
    pub(super) fn overdue(&self, config: &SessionConfig, now: Instant) -> Option<Fault> {
        if self.kind == LinkKind::V1 && self.heard + config.silence <= now {
            return Some(Fault::timeout(format_args!(
                "silent for {} s",
                config.silence.as_secs()
            )));
        }
        if matches!(self.stage, Stage::Handshake(_)) && self.opened + config.timeout <= now {
            return Some(Fault::timeout(format_args!(
                "no NBD handshake within {} s",
                config.timeout.as_secs()
            )));
        }
        None
    }

    fn land(&mut self, now: Instant, cookie: u64, result: Result<(), Failure>) -> Option<Landing> {
        let flight = self.flights.remove(&cookie)?;
        self.in_flight -= flight.cost;
        self.arrived -= flight.arrived;
        self.long -= usize::from(is_long(flight.cost));
        self.pace.land(now, &flight.departure);
        self.patience.hear(now, cookie);
        self.patience
            .settle(|cookie| self.flights.contains_key(&cookie));
        let result = result.map(|()| match (flight.assembly, flight.extents) {
            (Some(assembly), _) => Reply::Data(assembly.finish()),
            (None, Some(extents)) => Reply::BlockStatus(extents),
            (None, None) => Reply::Done,
        });
        if matches!(flight.job, Job::Abandoned) {
            self.abandoned -= 1;
        }
        Some(Landing {
            job: flight.job,
            result,
        })
    }

    /// What asking `command` on this link puts on its way, in bytes.
    pub(super) fn cost(&self, command: &Command) -> u64 {
        let structured = |transmission: &Transmission| transmission.negotiated().structured_replies;
        cost(command, self.transmission.as_ref().is_some_and(structured))
    }

    fn assembly_of(&mut self, cookie: u64) -> Option<&mut Assembly> {
        self.flights.get_mut(&cookie)?.assembly.as_mut()
    }
}

/// How much of long requests may be on its way or here in part, in bytes, whatever the line carries: the rest is for
/// small reads.
fn held(config: &SessionConfig) -> u64 {
    config.max_in_flight - config.max_in_flight / 8
}
