//! The session's task: selects one event, applies it.

use std::{
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    task::Poll,
    time::Instant,
};

use foldhash::HashMap;
use nbd::{Command, Reply, wire::Errno};
use nbd_session::{
    Closing, EndReason, LinkId, LinkKind, Output, RequestId, SessionConfig, SessionEvent, Volume,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::{JoinError, JoinSet},
    time::sleep_until,
};

use super::{
    Order, Settings, Status,
    board::Board,
    lifecycle::{Job, Lifecycle},
    recording::Recording,
    steps::Finished,
    turns::{Demand, Turn},
};
use crate::{
    audit::Event as AuditEvent,
    claim::Claim,
    device::{DeviceEvent, DeviceRequest, REQUEST_QUEUE, ReplySlot},
    keep::{Keeper, Kept},
    link::{self, Events, Link, LinkCommand, LinkEvent, Peer},
    polling::Polling,
    report::Kind,
};

/// How many events of one kind are applied before the others get a turn.
const BATCH: usize = 64;

/// Owns the volume, its links, and the requests that wait for it.
pub(super) struct Worker {
    pub(super) settings: Settings,
    pub(super) claim: Claim,
    /// The session's ID.
    pub(super) session: String,
    pub(super) volume: Volume,
    pub(super) board: Board,
    pub(super) life: Lifecycle,
    pub(super) jobs: JoinSet<Finished>,
    pub(super) recording: Recording,
    /// What comes and goes with links is in the hands of who serves them.
    pub(super) lines: Kind,
    /// Where the image is copied to.
    pub(super) keeper: Option<Keeper>,
    /// For devices: where their requests and events go.
    pub(super) to_requests: mpsc::Sender<DeviceRequest>,
    pub(super) to_device_events: mpsc::UnboundedSender<DeviceEvent>,
    orders: mpsc::UnboundedReceiver<Order>,
    requests: mpsc::Receiver<DeviceRequest>,
    device_events: mpsc::UnboundedReceiver<DeviceEvent>,
    /// The links that the session knows: one that serves or is about to, one that may take over.
    links: Vec<LiveLink>,
    waiting: HashMap<RequestId, Waiting>,
    next_request: u64,
    turn: Turn,
    link_batch: Vec<LinkEvent>,
    request_batch: Vec<DeviceRequest>,
}

struct LiveLink {
    id: LinkId,
    events: Events,
    commands: mpsc::UnboundedSender<LinkCommand>,
    peer: Peer,
}

struct Waiting {
    reply: ReplySlot,
    /// Bytes that the machine has read, or written, if it succeeds.
    read: u64,
    written: u64,
}

enum Event {
    Order(Order),
    /// Every handle is gone.
    Deserted,
    /// `link_batch` is filled; empty: the link is gone.
    Link(LinkId),
    /// `request_batch` is filled.
    Requests,
    Device(DeviceEvent),
    Job(Result<Finished, JoinError>),
    /// None: the store's thread is gone.
    Kept(Option<Kept>),
    /// Long requests may be sent.
    Turn(OwnedSemaphorePermit),
    Timeout,
}

impl Worker {
    pub(super) fn new(
        settings: Settings,
        claim: Claim,
        session: String,
        volume: Volume,
        orders: mpsc::UnboundedReceiver<Order>,
        publisher: watch::Sender<Status>,
    ) -> Self {
        let (to_requests, requests) = mpsc::channel(REQUEST_QUEUE);
        let (to_device_events, device_events) = mpsc::unbounded_channel();
        Self {
            volume: volume.with_cache(settings.limits.cache),
            board: Board::new(publisher),
            life: Lifecycle::default(),
            jobs: JoinSet::new(),
            recording: Recording::default(),
            lines: Kind::new(),
            keeper: None,
            to_requests,
            to_device_events,
            orders,
            requests,
            device_events,
            links: Vec::new(),
            waiting: HashMap::default(),
            next_request: 0,
            turn: Turn::new(settings.turns.clone(), Instant::now()),
            link_batch: Vec::with_capacity(BATCH),
            request_batch: Vec::with_capacity(BATCH),
            settings,
            claim,
            session,
        }
    }

    pub(super) async fn run(mut self) {
        let mut polling = Polling::giving_way();
        self.follow_up(Instant::now());
        while !self.life.over {
            // Long requests are in a row, and a wake more or less is little beside them.
            let has_long = Demand::of(&self.volume).is_any();
            let event = polling.wait(!has_long, self.next_event()).await;
            let now = Instant::now();
            self.apply(now, event);
            self.follow_up(now);
        }
    }

    /// Does what follows from what has happened.
    fn follow_up(&mut self, now: Instant) {
        self.forward_output(now);
        self.proceed(now);
        self.proceed_in_turn(now);
        self.forward_output(now);
        self.note(now);
        self.board.set_keep(self.volume.keep_state());
        self.board.set_busy_with(self.life.running.map(Job::name));
        self.board.publish(now);
    }

    async fn next_event(&mut self) -> Event {
        let deadlines = [
            self.volume.poll_timeout(),
            self.life.deadline(),
            self.board.deadline(),
            self.recording.deadline(),
            self.turn.deadline(),
        ];
        let timeout = async {
            match deadlines.into_iter().flatten().min() {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let link = poll_fn(|context| {
            let ready = self.links.iter_mut().find_map(|link| {
                let polled = link.events.poll_many(context, &mut self.link_batch, BATCH);
                polled.is_ready().then_some(link.id)
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        let kept = async {
            match &mut self.keeper {
                Some(keeper) => keeper.event().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = self.orders.recv(), if !self.life.is_ending() || !self.orders.is_closed() => {
                order.map_or(Event::Deserted, Event::Order)
            }
            id = link => Event::Link(id),
            _ = self.requests.recv_many(&mut self.request_batch, BATCH) => Event::Requests,
            Some(event) = self.device_events.recv() => Event::Device(event),
            Some(finished) = self.jobs.join_next() => Event::Job(finished),
            kept = kept => Event::Kept(kept),
            permit = self.turn.come() => Event::Turn(permit),
            () = timeout => Event::Timeout,
        }
    }

    fn apply(&mut self, now: Instant, event: Event) {
        match event {
            Event::Order(Order::Link(link)) => {
                self.take_link(link, |volume, kind| volume.open_link(now, kind));
            }
            Event::Order(Order::Challenge(link)) => {
                self.take_link(link, |volume, kind| volume.challenge(now, kind));
            }
            Event::Order(Order::End(reason)) => self.begin_end(now, reason),
            #[cfg(feature = "serve")]
            Event::Order(Order::Leave) => self.leave(now),
            Event::Order(Order::Eject { force, answer }) => self.begin_eject(now, force, answer),
            Event::Deserted => self.begin_end(now, EndReason::Shutdown),
            Event::Link(id) => self.apply_link_batch(now, id),
            Event::Requests => self.apply_request_batch(now),
            Event::Device(DeviceEvent::Disconnected) => {
                self.begin_end(now, EndReason::Disconnected);
            }
            Event::Device(DeviceEvent::Failed(cause)) => {
                self.begin_end(now, EndReason::Failed(cause));
            }
            Event::Job(Ok(finished)) => self.finish_job(now, finished),
            Event::Kept(kept) => self.apply_kept(now, kept),
            Event::Turn(permit) => {
                let allowed = self.turn.take(now, permit);
                self.volume.allow(now, allowed);
            }
            Event::Job(Err(error)) => self.lose_job(now, &error.to_string()),
            Event::Timeout => {
                self.volume.handle_timeout(now);
                self.handle_deadline(now);
            }
        }
    }

    fn take_link(&mut self, link: Link, open: impl Fn(&mut Volume, LinkKind) -> LinkId) {
        if self.life.is_ending() {
            let reason = format!(
                "configuration {:?} is still giving up its last image",
                self.settings.name
            );
            let _ = link.commands.send(LinkCommand::Close {
                code: link::IN_USE,
                reason,
            });
            return;
        }
        let Link {
            kind,
            events,
            commands,
            peer,
        } = link;
        if !self.life.ready {
            self.board.set_peer(peer.clone());
        }
        // What was said to older links until now is carried out afterwards, so they stay until then.
        self.links.push(LiveLink {
            id: open(&mut self.volume, kind),
            events,
            commands,
            peer,
        });
    }

    fn apply_link_batch(&mut self, now: Instant, id: LinkId) {
        let mut batch = std::mem::take(&mut self.link_batch);
        if batch.is_empty() {
            let closing = Closing::Lost("the connection broke off".into());
            batch.push(LinkEvent::Closed(closing));
        }
        for event in batch.drain(..) {
            match event {
                LinkEvent::Data(data) => self.volume.handle_data(now, id, data),
                LinkEvent::Text(text) => self.volume.handle_text(now, id, &text),
                LinkEvent::Alive => self.volume.handle_alive(now, id),
                LinkEvent::Closed(closing) => {
                    self.links.retain(|link| link.id != id);
                    self.volume.handle_closed(now, id, closing);
                }
            }
        }
        self.link_batch = batch;
        // The others come first now: a link that is never out of data holds up none that is to take over.
        if let Some(at) = self.links.iter().position(|link| link.id == id) {
            self.links[at..].rotate_left(1);
        }
    }

    fn apply_request_batch(&mut self, now: Instant) {
        for DeviceRequest {
            flags,
            command,
            reply,
        } in self.request_batch.drain(..)
        {
            let request = RequestId(self.next_request);
            self.next_request += 1;
            let (read, written) = match &command {
                Command::Read { .. } => (command.length(), 0),
                Command::Write { .. } | Command::WriteZeroes { .. } => (0, command.length()),
                _ => (0, 0),
            };
            let waiting = Waiting {
                reply,
                read,
                written,
            };
            self.waiting.insert(request, waiting);
            self.volume.submit(now, request, flags, command);
        }
    }

    /// Carries out what the volume wants done.
    fn forward_output(&mut self, now: Instant) {
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { link, data } => self.command(link, LinkCommand::Data(data)),
                Output::SendText { link, text } => self.command(link, LinkCommand::Text(text)),
                Output::Close { link, code, reason } => {
                    self.command(link, LinkCommand::Close { code, reason });
                    self.links.retain(|known| known.id != link);
                }
                Output::Complete { request, result } => self.complete(request, result),
                // A volume answers requests as a whole.
                Output::Arrived { .. } => {}
                Output::Store { task, action } => {
                    if let Some(keeper) = &self.keeper {
                        keeper.give(task, action);
                    }
                }
                Output::Event(event) => self.apply_session_event(now, event),
            }
        }
    }

    /// Takes and leaves turns.
    fn proceed_in_turn(&mut self, now: Instant) {
        let demand = Demand::of(&self.volume);
        if let Some(allowed) = self.turn.proceed(now, demand) {
            self.volume.allow(now, allowed);
        }
    }

    fn command(&self, link: LinkId, command: LinkCommand) {
        if let Some(link) = self.links.iter().find(|known| known.id == link) {
            // A link whose task is gone has told so, or is about to.
            let _ = link.commands.send(command);
        }
    }

    fn complete(&mut self, request: RequestId, result: Result<Reply, Errno>) {
        if let Some(waiting) = self.waiting.remove(&request) {
            match result.is_ok() {
                true => self.board.count_request(waiting.read, waiting.written),
                false => self.board.count_request(0, 0),
            }
            waiting.reply.answer(result);
        }
    }

    fn show_peer(&mut self, link: LinkId) {
        if let Some(link) = self.links.iter().find(|known| known.id == link) {
            self.board.set_peer(link.peer.clone());
            self.recording.renew();
        }
    }

    /// Closes all links; whoever serves the image is to come back.
    #[cfg(feature = "serve")]
    pub(super) fn dismiss_links(&mut self, reason: &str) {
        for link in self.links.drain(..) {
            let _ = link.commands.send(LinkCommand::Close {
                code: nbd_session::close::GOING_AWAY,
                reason: reason.into(),
            });
        }
    }

    fn apply_session_event(&mut self, now: Instant, event: SessionEvent) {
        match event {
            SessionEvent::Ready(_) => {
                self.life.ready = true;
                // There is no other yet.
                if let Some(link) = self.links.first() {
                    self.command(link.id, LinkCommand::Trust);
                }
                self.board
                    .set_image(self.volume.image().cloned(), self.volume.geometry());
            }
            SessionEvent::Held { until, reason } => {
                self.lines.warning(format_args!(
                    "configuration {:?}: held: {reason}",
                    self.settings.name
                ));
                self.board.set_held(Some(until));
                self.audit(|session| AuditEvent::Held { session, reason });
                self.drain(now);
            }
            SessionEvent::TakenOver { link } => {
                self.command(link, LinkCommand::Trust);
                self.show_peer(link);
                self.lines.information(format_args!(
                    "configuration {:?}: taken over from {}",
                    self.settings.name,
                    self.board.status().peer.from
                ));
                self.audit(AuditEvent::TakenOver);
            }
            SessionEvent::Resumed { link } => {
                self.command(link, LinkCommand::Trust);
                self.show_peer(link);
                self.lines.information(format_args!(
                    "configuration {:?}: resumed",
                    self.settings.name
                ));
                self.board.set_held(None);
                self.board.set_alone(false);
                self.audit(AuditEvent::Resumed);
            }
            SessionEvent::Whole => self.show_whole(),
            SessionEvent::Alone { reason } => self.show_alone(&reason),
            SessionEvent::KeepLost(problem) => self.drop_keeper(&problem),
            SessionEvent::Ending(reason) | SessionEvent::Ended(reason) => {
                self.begin_end(now, reason);
            }
        }
    }
}

/// How the session of a configuration behaves.
pub(super) fn session_config(settings: &Settings) -> SessionConfig {
    let usual = SessionConfig::default();
    SessionConfig {
        configuration: settings.name.clone(),
        timeout: settings.timeout,
        hold: settings.hold,
        one_link: settings.one_link,
        silence: settings.silence,
        beat: usual.beat.min(settings.silence / 3),
        max_request: settings.limits.max_request,
        max_in_flight: settings.limits.max_in_flight,
        seed: RandomState::new().hash_one(()),
        ..usual
    }
}
