//! A disk made of a remote image: whole sectors, requests of any length, every command.
//!
//! [`plan`] decides what the image is asked for each request of the device; its parts go to the session, and the
//! answer is made of their answers. Coalescing, readahead and a cache have their place between the two: a part that
//! is cached is answered instead of being submitted, and readahead is a part that no request waits for.

mod geometry;
mod plan;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use nbd::wire::{CommandFlags, Errno};
use nbd::{Command, Reply};

pub use geometry::{Geometry, SECTOR};

use crate::control::{DevicePhase, ImageInfo};
use crate::reason::EndReason;
use crate::session::{Closing, LinkId, LinkKind, Output, RequestId, Session, SessionEvent};
use plan::{Limits, Plan, Shape, plan};

/// A disk whose image a [`Session`] keeps reachable.
///
/// It takes the same calls as its session and passes most of them on. Requests are those of a device: anywhere in
/// [`Geometry::size`], of any length; each is answered exactly once by an [`Output::Complete`].
#[derive(Debug)]
pub struct Volume {
    session: Session,
    geometry: Option<Geometry>,
    tasks: HashMap<u64, Task>,
    /// To which task a request to the session belongs, and its place there.
    parts: HashMap<RequestId, (u64, usize)>,
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

impl Volume {
    /// A disk of the image that `session` will have.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            geometry: None,
            tasks: HashMap::new(),
            parts: HashMap::new(),
            next_task: 0,
            next_part: 0,
            answers: VecDeque::new(),
        }
    }

    /// See [`Session::open_link`].
    pub fn open_link(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        self.session.open_link(now, kind)
    }

    /// See [`Session::challenge`].
    pub fn challenge(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        self.session.challenge(now, kind)
    }

    /// See [`Session::handle_data`].
    pub fn handle_data(&mut self, now: Instant, link: LinkId, data: Bytes) {
        self.session.handle_data(now, link, data);
    }

    /// See [`Session::handle_text`].
    pub fn handle_text(&mut self, now: Instant, link: LinkId, text: &str) {
        self.session.handle_text(now, link, text);
    }

    /// See [`Session::handle_alive`].
    pub fn handle_alive(&mut self, now: Instant, link: LinkId) {
        self.session.handle_alive(now, link);
    }

    /// See [`Session::handle_closed`].
    pub fn handle_closed(&mut self, now: Instant, link: LinkId, closing: Closing) {
        self.session.handle_closed(now, link, closing);
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
    }

    /// See [`Session::set_device`].
    pub fn set_device(&mut self, now: Instant, phase: DevicePhase, device: Option<String>) {
        self.session.set_device(now, phase, device);
    }

    /// See [`Session::drain`].
    pub fn drain(&mut self, now: Instant, reason: EndReason) {
        self.session.drain(now, reason);
    }

    /// See [`Session::end`].
    pub fn end(&mut self, now: Instant, reason: EndReason) {
        self.session.end(now, reason);
    }

    /// See [`Session::poll_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.session.poll_timeout()
    }

    /// See [`Session::handle_timeout`].
    pub fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
    }

    /// What is to be done next; to be called until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            match self.session.poll_output()? {
                Output::Complete { request, result } => self.collect(request, result),
                Output::Event(SessionEvent::Ready(export)) => {
                    let name = self
                        .session
                        .image()
                        .map(|image| image.name.clone())
                        .unwrap_or_default();
                    self.geometry = Some(Geometry::of(&export, name));
                    return Some(Output::Event(SessionEvent::Ready(export)));
                }
                output => return Some(output),
            }
        }
    }

    /// What the disk is like, from [`SessionEvent::Ready`] on.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// See [`Session::image`].
    pub fn image(&self) -> Option<&ImageInfo> {
        self.session.image()
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
            block_status: self.session.has_block_status(),
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
            let part = RequestId(self.next_part);
            self.next_part += 1;
            self.parts.insert(part, (task, place));
            self.session.submit(now, part, flags, command);
        }
    }

    /// The image answered one part.
    fn collect(&mut self, part: RequestId, result: Result<Reply, Errno>) {
        let Some((number, place)) = self.parts.remove(&part) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        task.answers[place] = result;
        task.waiting -= 1;
        if task.waiting == 0
            && let Some(Task {
                request,
                shape,
                answers,
                ..
            }) = self.tasks.remove(&number)
        {
            self.answers.push_back(Output::Complete {
                request,
                result: shape.answer(answers),
            });
        }
    }
}
