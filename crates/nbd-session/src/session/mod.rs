//! One image, kept reachable: what a session is, what happens to it, and when.

mod allowance;
mod assembly;
mod challenge;
mod config;
mod flight;
mod identity;
mod life;
mod link;
mod pace;
mod patience;
mod replay;
mod requests;
mod seen;
mod sending;
mod serve;
mod snapshot;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use nbd::wire::{CommandFlags, Errno};
use nbd::{Command, Export};

pub use config::{
    Closing, LinkId, LinkKind, Output, RequestId, SessionConfig, SessionEvent, StoreAction, StoreId,
};
pub use requests::SMALL_READ;
pub use snapshot::{RestoreError, Snapshot};

use crate::control::{DevicePhase, ImageInfo, KeepState, PageMessage, ServerMessage};
use crate::reason::{EndReason, Fault, close};
use identity::Identity;
use link::Link;
use replay::ReplayLog;
use requests::Requests;
use seen::Seen;

/// One image, from its first link until it ends. It outlives its links: while there is none, requests wait.
///
/// A request is answered exactly once, by [`Output::Complete`]. Requests before [`SessionEvent::Ready`] and after
/// [`SessionEvent::Ended`] fail at once. How many requests are submitted at a time is the caller's to bound; the
/// session keeps all of them, but sends no more than [`SessionConfig::max_in_flight`].
///
/// A peer that breaks a rule, is silent, or leaves a request unanswered for [`SessionConfig::timeout`], loses its
/// link: [`Output::Close`] says so, and the session is held like after any other loss. A request that is late a
/// second time fails with EIO instead, so that a peer that hangs cannot hang the machine for ever.
///
/// When a newer link takes over, or a link is lost, commands of the older one must not be carried out any more: the
/// peer stops what an older link asked for before it opens a new one. Otherwise a delayed WRITE could undo a later.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    /// Why it is to end soon: it is not held any more.
    ending: Option<EndReason>,
    identity: Option<Identity>,
    link: Option<Link>,
    /// A link that may take over from `link`.
    challenger: Option<Link>,
    newest: LinkId,
    resumed: bool,
    /// How many writing commands were sent.
    writes: u64,
    requests: Requests,
    log: ReplayLog,
    seen: Seen,
    phase: DevicePhase,
    device: Option<String>,
    keep: Option<KeepState>,
    /// What may still be sent of long requests, in bytes; None: no bound of this kind.
    allowance: Option<u64>,
    /// Somebody here has the whole image: links are welcome, but not needed.
    independent: bool,
    outputs: VecDeque<Output>,
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The image is not known yet.
    Opening,
    /// A link serves it.
    Served,
    /// No link serves it; perhaps one is on its way to.
    Held { until: Instant },
    /// No link serves it, and none is needed.
    Alone,
    /// It is over.
    Ended,
}

impl Session {
    /// A session that waits for its first link.
    pub fn new(mut config: SessionConfig) -> Self {
        config.replay_limit = config.replay_limit.max(2 * u64::from(config.max_request));
        Self {
            state: State::Opening,
            ending: None,
            identity: None,
            link: None,
            challenger: None,
            newest: LinkId(0),
            resumed: false,
            writes: 0,
            requests: Requests::default(),
            log: ReplayLog::new(config.replay_limit),
            seen: Seen::new(config.seed),
            phase: DevicePhase::Attaching,
            device: None,
            keep: None,
            allowance: None,
            independent: false,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// A new link exists. It supersedes the older one at once, and serves the session when its handshake is done and
    /// its image is the session's.
    pub fn open_link(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        let id = self.next_link();
        if let Some(older) = self.link.take() {
            self.close(older.id, close::SUPERSEDED, "superseded by a newer link");
            self.requests.requeue();
        }
        match self.state {
            State::Ended => self.close(id, close::GOING_AWAY, "the session has ended"),
            State::Served => {
                let until = now + self.config.hold.max(self.config.timeout);
                self.wait(until, "superseded by a newer link".into());
            }
            State::Opening | State::Held { .. } | State::Alone => {}
        }
        if self.state != State::Ended {
            self.link = Some(Link::new(id, kind, &self.config, now));
        }
        id
    }

    /// NBD bytes arrived.
    pub fn handle_data(&mut self, now: Instant, link: LinkId, data: Bytes) {
        let Some(current) = self.current(link) else {
            return;
        };
        current.hear(now);
        if self.is_challenger(link) {
            return self.weigh_data(now, data);
        }
        if let Err(fault) = self.receive(now, data) {
            self.fail_link(now, &fault);
        }
        self.pump(now);
    }

    /// A text message arrived.
    pub fn handle_text(&mut self, now: Instant, link: LinkId, text: &str) {
        let Some(current) = self.current(link) else {
            return;
        };
        current.hear(now);
        let counted = current.count_text(now);
        if self.is_challenger(link) {
            return self.weigh_text(counted, text);
        }
        if let Err(fault) = counted.and_then(|()| self.receive_text(now, text)) {
            self.fail_link(now, &fault);
        }
    }

    /// The peer showed in another way that it is alive: by a pong.
    pub fn handle_alive(&mut self, now: Instant, link: LinkId) {
        if let Some(current) = self.current(link) {
            current.hear(now);
        }
    }

    /// The link is gone. In order, it ends the session, if this link had ever served it and is still needed.
    pub fn handle_closed(&mut self, now: Instant, link: LinkId, closing: Closing) {
        let Some(current) = self.current(link) else {
            return;
        };
        let served = current.is_trusted();
        if self.is_challenger(link) {
            self.challenger = None;
            return;
        }
        match closing {
            Closing::Clean if self.independent => {
                self.lose_link(now, "closed by the one who served the image", None);
            }
            Closing::Clean if served || self.state == State::Opening => {
                self.link = None;
                let reason = self.ending.clone().unwrap_or(EndReason::Closed);
                self.finish(reason);
            }
            Closing::Clean => self.lose_link(now, "closed before it served the image", None),
            Closing::Lost(cause) => self.lose_link(now, &cause, None),
        }
    }

    /// The device asks for something within the image. READ and WRITE are at most [`Self::max_request`] bytes.
    pub fn submit(
        &mut self,
        now: Instant,
        request: RequestId,
        flags: CommandFlags,
        command: Command,
    ) {
        match self.state {
            State::Opening | State::Ended => self.complete(request, Err(Errno::EIO)),
            State::Served | State::Held { .. } | State::Alone => {
                self.requests.push(request, flags, command, false);
                self.pump(now);
            }
        }
    }

    /// The same for a READ whose bytes are wanted as they come, by [`Output::Arrived`].
    pub fn submit_streamed(&mut self, now: Instant, request: RequestId, offset: u64, length: u32) {
        let command = Command::Read { offset, length };
        match self.state {
            State::Opening | State::Ended => self.complete(request, Err(Errno::EIO)),
            State::Served | State::Held { .. } | State::Alone => {
                let flags = CommandFlags::empty();
                self.requests.push(request, flags, command, true);
                self.pump(now);
            }
        }
    }

    /// Takes back a request that was not sent yet, or has to be sent again. It is not answered then.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        self.requests.cancel(request)
    }

    /// The highest rate lately at which the link brought what was asked for, in bytes a second; 0 without a link.
    pub fn rate(&self) -> u64 {
        let link = self.link.as_ref().filter(|link| link.is_serving());
        link.map_or(0, Link::rate)
    }

    /// What the link carries in about a round trip, in bytes, as far as it may be asked for; 0 without a link.
    pub fn reach(&self) -> u64 {
        let link = self.link.as_ref().filter(|link| link.is_serving());
        link.map_or(0, |link| link.reach(&self.config))
    }

    /// How much can be asked for that nobody waits for yet, without keeping the machine's own requests waiting, in
    /// bytes: what the link carries in about a round trip, less what is on its way.
    pub fn room(&self) -> u64 {
        let link = self.link.as_ref().filter(|link| link.is_serving());
        match link {
            Some(link) if !self.requests.is_any_waiting() => link.room(&self.config),
            _ => 0,
        }
    }

    /// The device's place in its life, and its path: what the `state` message tells. It begins as
    /// [`DevicePhase::Attaching`]; that it is held is known without being told.
    pub fn set_device(&mut self, now: Instant, phase: DevicePhase, device: Option<String>) {
        self.phase = phase;
        self.device = device;
        self.send_state(now);
    }

    /// What the `state` message tells of a kept copy.
    pub fn set_keep(&mut self, now: Instant, keep: Option<KeepState>) {
        if self.keep != keep && self.state != State::Ended {
            self.keep = keep;
            self.send_state(now);
        }
    }

    /// Whether somebody here has the whole image, which is read-only. Then requests are not submitted any more, and
    /// a link that is lost or closed neither holds nor ends the session. Where that is over, a link is needed again.
    pub fn set_independent(&mut self, now: Instant, independent: bool) {
        self.independent = independent;
        match self.state {
            State::Held { until } if independent => {
                self.wait(until, "it is not needed any more".into());
                self.send_state(now);
            }
            State::Alone if !independent => {
                self.state = State::Served;
                self.miss_link(
                    now,
                    "the kept copy is lost, and nobody serves the image".into(),
                );
            }
            _ => {}
        }
    }

    /// Takes back all unanswered requests, in order: their submitter answers them otherwise.
    pub fn withdraw(&mut self) -> Vec<(RequestId, Command)> {
        let requests = self.requests.take_all();
        requests
            .map(|request| (request.id, request.command))
            .collect()
    }

    /// Whether a link serves the image just now.
    pub fn is_served(&self) -> bool {
        self.state == State::Served && self.link.as_ref().is_some_and(Link::is_serving)
    }

    /// The session is to end: the stop hook runs. Requests are served while the link lives, or is not needed; without
    /// it they fail at once, and [`SessionEvent::Ended`] may come before [`Self::end`] is called.
    pub fn drain(&mut self, _now: Instant, reason: EndReason) {
        let reason = self.ending.get_or_insert(reason).clone();
        if self.state != State::Served && !self.independent {
            self.finish(reason);
        }
    }

    /// Ends the session: what is unanswered fails, the peer is told, the link is closed.
    pub fn end(&mut self, _now: Instant, reason: EndReason) {
        self.finish(reason);
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let held = match self.state {
            State::Held { until } => Some(until),
            _ => None,
        };
        let links = [&self.link, &self.challenger].into_iter().flatten();
        held.into_iter()
            .chain(links.filter_map(|link| link.next_timeout(&self.config)))
            .min()
    }

    /// The time that [`Self::poll_timeout`] gave has come. Calling it at any other time is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Held { until } if until <= now) {
            return self.finish(EndReason::HoldExpired);
        }
        if let Some(fault) = self
            .link
            .as_ref()
            .and_then(|link| link.overdue(&self.config, now))
        {
            self.fail_link(now, &fault);
        }
        if let Some(fault) = self.expire(now) {
            self.fail_link(now, &fault);
        }
        if self
            .link
            .as_mut()
            .is_some_and(|link| link.take_beat(&self.config, now))
        {
            self.send_text(&ServerMessage::Beat);
        }
        self.time_challenger(now);
        self.pump(now);
    }

    /// What is to be done next; to be called until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The image, once the first handshake is done.
    pub fn export(&self) -> Option<&Export> {
        self.identity.as_ref().map(|identity| &identity.export)
    }

    /// The image as it was announced, once the first handshake is done; of a plain link, by the export's name.
    pub fn image(&self) -> Option<&ImageInfo> {
        self.identity.as_ref().map(|identity| &identity.info)
    }

    /// The longest READ or WRITE that may be submitted, in bytes: a multiple of the export's minimum block size.
    pub fn max_request(&self) -> u32 {
        self.identity
            .as_ref()
            .map_or(self.config.max_request, |identity| identity.max_request)
    }

    /// Whether the link that serves the image just now can be asked for BLOCK_STATUS.
    pub fn has_block_status(&self) -> bool {
        self.link.as_ref().is_some_and(Link::has_block_status)
    }

    /// Whether it is over.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    fn next_link(&mut self) -> LinkId {
        self.newest = LinkId(self.newest.0 + 1);
        self.newest
    }

    /// The link, or the one that may take over, unless it is an older one that is forgotten.
    fn current(&mut self, id: LinkId) -> Option<&mut Link> {
        [&mut self.link, &mut self.challenger]
            .into_iter()
            .flatten()
            .find(|link| link.id == id)
    }

    fn receive_text(&mut self, now: Instant, text: &str) -> Result<(), Fault> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.kind == LinkKind::Plain {
            return Err(Fault::text_on_plain());
        }
        match PageMessage::parse(text).map_err(Fault::violation)? {
            PageMessage::Image(_) if link.image.is_some() => Err(Fault::second_image()),
            PageMessage::Image(image) => {
                if let Some(identity) = &self.identity {
                    identity.check_announced(&image, LinkKind::V1, self.writes > 0)?;
                }
                link.image = Some(image);
                self.send_state(now);
                Ok(())
            }
            PageMessage::Bye => {
                self.say_farewell(now);
                Ok(())
            }
            PageMessage::Ping => {
                self.send_text(&ServerMessage::Pong);
                Ok(())
            }
            PageMessage::Unknown => Ok(()),
        }
    }
}
