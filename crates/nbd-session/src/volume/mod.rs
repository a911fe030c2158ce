//! A disk made of a remote image: whole sectors, requests of any length, every command.
//!
//! [`plan()`] decides what the image is asked for each request of the device; its parts go to the session, and the
//! answer is made of their answers. Between the two are the cache ([`cache`]), which answers what it has and asks for
//! what streams will come by, and the kept copy ([`keep`]): what that has, its store answers.

mod cache;
mod caching;
mod copying;
mod geometry;
mod keep;
mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use foldhash::HashMap;
use nbd::wire::{CommandFlags, Errno};
use nbd::{Command, Export, Reply};

pub use geometry::{Geometry, SECTOR};

use crate::control::{DevicePhase, ImageInfo, KeepState};
use crate::reason::EndReason;
use crate::session::{
    Closing, LinkId, LinkKind, Output, RequestId, Session, SessionEvent, Snapshot,
};
use caching::Caching;
use keep::Keep;
use plan::{Limits, Plan, Shape, plan};

/// A disk whose image a [`Session`] keeps reachable.
///
/// It takes the same calls as its session and passes most of them on. Requests are those of a device: anywhere in
/// [`Geometry::size`], of any length; each is answered exactly once by an [`Output::Complete`].
#[derive(Debug)]
pub struct Volume {
    session: Session,
    geometry: Option<Geometry>,
    tasks: BTreeMap<u64, Task>,
    parts: HashMap<RequestId, Part>,
    /// How much of a read-only image may be in memory, in bytes.
    cache_limit: u64,
    caching: Option<Caching>,
    keep: Option<Keep>,
    /// What was last told of the copy.
    keep_state: Option<KeepState>,
    next_task: u64,
    next_part: u64,
    answers: VecDeque<Output>,
}

/// A request of the device that waits for answers of the image.
#[derive(Debug)]
struct Task {
    request: RequestId,
    shape: Shape,
    answers: Vec<Result<Reply, Errno>>,
    waiting: usize,
}

/// What the image is asked for a task.
#[derive(Debug, Clone, Copy)]
struct Part {
    task: u64,
    /// Its place there.
    place: usize,
    /// Where it begins in the image, in bytes.
    offset: u64,
}

impl Volume {
    /// A disk of the image that `session` will have, or has: one that was restored.
    pub fn new(mut session: Session) -> Self {
        Self {
            // That a restored one is held.
            answers: std::iter::from_fn(|| session.poll_output()).collect(),
            geometry: session
                .export()
                .map(|export| Geometry::of(export, name_of(&session))),
            session,
            tasks: BTreeMap::new(),
            parts: HashMap::default(),
            cache_limit: 0,
            caching: None,
            keep: None,
            keep_state: None,
            next_task: 0,
            next_part: 0,
        }
    }

    /// The same with up to `bytes` of a read-only image in memory, and readahead into it; 0: none. What was asked for
    /// at once may exceed that until it is answered.
    pub fn with_cache(mut self, bytes: u64) -> Self {
        self.cache_limit = bytes;
        self.begin_caching();
        self
    }

    /// See [`Session::open_link`].
    pub fn open_link(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        let link = self.session.open_link(now, kind);
        self.absorb(now);
        link
    }

    /// See [`Session::challenge`].
    pub fn challenge(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        let link = self.session.challenge(now, kind);
        self.absorb(now);
        link
    }

    /// See [`Session::handle_data`].
    pub fn handle_data(&mut self, now: Instant, link: LinkId, data: Bytes) {
        self.session.handle_data(now, link, data);
        self.weigh_memory();
        self.disturb_keep(now);
        self.absorb(now);
        self.read_ahead(now);
        self.absorb(now);
    }

    /// See [`Session::handle_text`].
    pub fn handle_text(&mut self, now: Instant, link: LinkId, text: &str) {
        self.session.handle_text(now, link, text);
        self.absorb(now);
    }

    /// See [`Session::handle_alive`].
    pub fn handle_alive(&mut self, now: Instant, link: LinkId) {
        self.session.handle_alive(now, link);
        self.absorb(now);
    }

    /// See [`Session::handle_closed`].
    pub fn handle_closed(&mut self, now: Instant, link: LinkId, closing: Closing) {
        self.session.handle_closed(now, link, closing);
        self.absorb(now);
    }

    /// The device asks for something. What the disk does not have or allow fails with the errors of proto.md,
    /// "Error values"; what cannot be had fails with EIO.
    pub fn submit(
        &mut self,
        now: Instant,
        request: RequestId,
        flags: CommandFlags,
        command: Command,
    ) {
        let plan = match (&self.geometry, self.limits()) {
            (Some(geometry), Some(limits)) if !self.is_ended() => {
                plan(geometry, limits, flags, command)
            }
            _ => Plan::Answer(Err(Errno::EIO)),
        };
        match plan {
            Plan::Answer(result) => self.answers.push_back(Output::Complete { request, result }),
            Plan::Ask(parts, shape) => self.ask(now, request, parts, shape),
        }
        self.absorb(now);
        self.read_ahead(now);
        self.absorb(now);
    }

    /// See [`Session::set_device`].
    pub fn set_device(&mut self, now: Instant, phase: DevicePhase, device: Option<String>) {
        self.session.set_device(now, phase, device);
        self.absorb(now);
    }

    /// See [`Session::drain`].
    pub fn drain(&mut self, now: Instant, reason: EndReason) {
        self.session.drain(now, reason);
        self.absorb(now);
    }

    /// See [`Session::end`].
    pub fn end(&mut self, now: Instant, reason: EndReason) {
        self.session.end(now, reason);
        self.absorb(now);
    }

    /// See [`Session::allow`].
    pub fn allow(&mut self, now: Instant, bytes: Option<u64>) {
        self.session.allow(now, bytes);
        self.absorb(now);
    }

    /// See [`Session::allowance`].
    pub fn allowance(&self) -> Option<u64> {
        self.session.allowance()
    }

    /// See [`Session::needs_allowance`].
    pub fn needs_allowance(&self) -> Option<u64> {
        self.session.needs_allowance()
    }

    /// See [`Session::uses_allowance`].
    pub fn uses_allowance(&self) -> bool {
        self.session.uses_allowance()
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self.session.poll_timeout();
        session.into_iter().chain(self.next_fetch()).min()
    }

    /// The time that [`Self::poll_timeout`] gave has come. Calling it at any other time is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        self.fetch(now);
        self.absorb(now);
    }

    /// What is to be done next; to be called until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.answers.pop_front()
    }

    /// Takes what comes out of the session; whatever changed it is followed by this.
    fn absorb(&mut self, now: Instant) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Complete { request, result } => self.take_answer(now, request, result),
                Output::Arrived {
                    request,
                    offset,
                    data,
                } => self.take_arrived(request, offset, &data),
                Output::Event(SessionEvent::Ended(reason)) => self.finish(reason),
                Output::Event(SessionEvent::Ready(export)) => self.begin(export),
                output => {
                    if matches!(output, Output::Event(SessionEvent::Held { .. })) {
                        self.drop_ahead();
                    }
                    self.answers.push_back(output);
                }
            }
        }
    }

    fn begin_caching(&mut self) {
        let is_read_only = |geometry: &Geometry| geometry.read_only;
        if self.cache_limit > 0 && self.geometry.as_ref().is_some_and(is_read_only) {
            self.caching = Some(Caching::new(self.cache_limit));
        }
    }

    /// The image is known.
    fn begin(&mut self, export: Export) {
        self.geometry = Some(Geometry::of(&export, name_of(&self.session)));
        self.begin_caching();
        self.answers
            .push_back(Output::Event(SessionEvent::Ready(export)));
    }

    /// What the disk is like, from [`SessionEvent::Ready`] on.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// See [`Session::image`].
    pub fn image(&self) -> Option<&ImageInfo> {
        self.session.image()
    }

    /// See [`Session::snapshot`].
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.session.snapshot()
    }

    /// See [`Session::revision`].
    pub fn revision(&self) -> u64 {
        self.session.revision()
    }

    /// See [`Session::is_ended`].
    pub fn is_ended(&self) -> bool {
        self.session.is_ended()
    }

    fn limits(&self) -> Option<Limits> {
        let export = self.session.export()?;
        Some(Limits {
            max_request: self.session.max_request(),
            block: export.effective_block_sizes().minimum,
            block_status: self.session.has_block_status() && !self.is_whole(),
        })
    }

    fn ask(
        &mut self,
        now: Instant,
        request: RequestId,
        parts: Vec<(CommandFlags, Command)>,
        shape: Shape,
    ) {
        let task = self.next_task;
        self.next_task += 1;
        let answers = vec![Err(Errno::EIO); parts.len()];
        self.tasks.insert(
            task,
            Task {
                request,
                shape,
                waiting: parts.len(),
                answers,
            },
        );
        for (place, (flags, command)) in parts.into_iter().enumerate() {
            let offset = command.offset();
            let part = self.number_part();
            self.parts.insert(
                part,
                Part {
                    task,
                    place,
                    offset,
                },
            );
            if !self.ask_cache(now, part, &command) && !self.ask_store(part, &command) {
                self.session.submit(now, part, flags, command);
                self.disturb_keep(now);
            }
        }
    }

    fn number_part(&mut self) -> RequestId {
        self.next_part += 1;
        RequestId(self.next_part)
    }

    /// One part is answered, by whomever.
    fn collect(&mut self, part: RequestId, result: Result<Reply, Errno>) {
        let Some(Part { task, place, .. }) = self.parts.remove(&part) else {
            return;
        };
        let Some(waiting) = self.tasks.get_mut(&task) else {
            return;
        };
        waiting.answers[place] = result;
        waiting.waiting -= 1;
        if waiting.waiting == 0
            && let Some(Task {
                request,
                shape,
                answers,
                ..
            }) = self.tasks.remove(&task)
        {
            self.answers.push_back(Output::Complete {
                request,
                result: shape.answer(answers),
            });
        }
    }

    /// The session has ended: what only a store could still answer fails as well.
    fn finish(&mut self, reason: EndReason) {
        self.keep = None;
        self.caching = None;
        self.parts.clear();
        for (_, task) in std::mem::take(&mut self.tasks) {
            self.answers.push_back(Output::Complete {
                request: task.request,
                result: Err(Errno::EIO),
            });
        }
        self.answers
            .push_back(Output::Event(SessionEvent::Ended(reason)));
    }
}

fn name_of(session: &Session) -> String {
    session
        .image()
        .map(|image| image.name.clone())
        .unwrap_or_default()
}
