//! The volume's side of the kept copy: what goes to the store, what comes back, and what that means to the session.

use std::time::Instant;

use nbd::wire::{CommandFlags, Errno};
use nbd::{Command, Payload, Reply};

use super::Volume;
use super::keep::{Keep, Part, Stored};
use crate::control::KeepState;
use crate::session::{Output, RequestId, SessionEvent, StoreId};

impl Volume {
    /// From now on the image is copied into an empty store that has room for all of it, in idle moments: see
    /// [`Output::Store`]. Not for a disk that can be written to. To be called once, after [`SessionEvent::Ready`].
    pub fn begin_keep(&mut self, now: Instant) {
        if self.is_ended() {
            return;
        }
        let keep = match &self.geometry {
            None => Err("the image is not known yet"),
            Some(geometry) if !geometry.read_only => Err("the image can be written to"),
            Some(geometry) => Keep::new(now, geometry.image_size, self.session.max_request())
                .ok_or("the image is too large"),
        };
        match keep {
            Ok(keep) => {
                self.keep = Some(keep);
                self.tell_keep(now);
                self.absorb(now);
            }
            Err(problem) => self.refuse_keep(now, problem.into()),
        }
    }

    /// There will be no copy; `problem` says why, for people.
    pub fn refuse_keep(&mut self, now: Instant, problem: String) {
        self.set_keep_state(
            now,
            KeepState {
                size: self.geometry.as_ref().map_or(0, |one| one.image_size),
                problem: Some(problem),
                ..KeepState::default()
            },
        );
        self.absorb(now);
    }

    /// The store has done a task; a failure comes with its cause, for people, and is the end of the copy, never of the
    /// session. Tasks may be done in any order.
    pub fn handle_stored(&mut self, now: Instant, task: StoreId, result: Result<Payload, String>) {
        let Some(keep) = &mut self.keep else { return };
        match keep.handle_stored(now, task, result, &mut self.answers) {
            Stored::Nothing => self.tell_keep(now),
            Stored::Read(part, data) => self.collect(part, Ok(Reply::Data(data))),
            Stored::Whole => self.become_independent(now),
            Stored::Lost(cause) => self.give_up_keep(now, format!("the store failed: {cause}")),
        }
        self.absorb(now);
    }

    /// How far the copy is, as it was last told; `None` where none was asked for.
    pub fn keep_state(&self) -> Option<&KeepState> {
        self.keep_state.as_ref()
    }

    /// Whether the whole image is here.
    pub(super) fn is_whole(&self) -> bool {
        self.keep.as_ref().is_some_and(Keep::is_whole)
    }

    /// Lets the store answer a part, if it can.
    pub(super) fn ask_store(&mut self, part: RequestId, command: &Command) -> bool {
        let Some(keep) = &mut self.keep else {
            return false;
        };
        match *command {
            Command::Read { offset, length } if keep.covers(offset, length) => {
                let id = part;
                self.answers
                    .push_back(keep.read(Part { id, offset, length }));
            }
            _ if keep.is_whole() => self.collect(part, answer_without_link(command)),
            _ => return false,
        }
        true
    }

    /// The session answered something: for the machine, or for the copy.
    pub(super) fn take_answer(
        &mut self,
        now: Instant,
        request: RequestId,
        result: Result<Reply, Errno>,
    ) {
        if self.is_of_cache(request) {
            return self.take_segment(now, request, result);
        }
        match (&mut self.keep, self.parts.get(&request), &result) {
            (Some(keep), _, _) if keep.is_fetch(request) => {
                let data = result.and_then(|reply| match reply {
                    Reply::Data(data) => Ok(data),
                    _ => Err(Errno::EIO),
                });
                self.answers.extend(keep.fetched(data));
            }
            (Some(keep), Some(part), Ok(Reply::Data(data))) => {
                self.answers.extend(keep.take(part.offset, data));
                self.collect(request, result);
            }
            _ => self.collect(request, result),
        }
    }

    /// The machine waits for the link, or did until just now.
    pub(super) fn disturb_keep(&mut self, now: Instant) {
        if self.is_asking()
            && let Some(keep) = &mut self.keep
        {
            keep.disturb(now);
        }
    }

    /// When something can be asked for the copy.
    pub(super) fn next_fetch(&self) -> Option<Instant> {
        let idle = !self.is_asking() && self.session.is_served();
        self.keep.as_ref().filter(|_| idle)?.poll_timeout()
    }

    /// Asks for more of the image, if it is time.
    pub(super) fn fetch(&mut self, now: Instant) {
        if self.next_fetch().is_none_or(|at| at > now) {
            return;
        }
        let request = self.number_part();
        let next = |keep: &mut Keep| keep.next_fetch(now, request);
        if let Some((offset, length)) = self.keep.as_mut().and_then(next) {
            let command = Command::Read { offset, length };
            self.session
                .submit(now, request, CommandFlags::empty(), command);
        }
    }

    /// Whether the machine waits for an answer of the link.
    fn is_asking(&self) -> bool {
        self.parts.len() > self.keep.as_ref().map_or(0, Keep::reading)
    }

    /// The copy is whole: the store answers everything from now on, what is under way on the link as well.
    fn become_independent(&mut self, now: Instant) {
        self.tell_keep(now);
        self.answers.push_back(Output::Event(SessionEvent::Whole));
        self.session.set_independent(now, true);
        for (part, command) in self.session.withdraw() {
            if self.is_of_cache(part) {
                self.turn_to_store(part);
            } else if self.parts.contains_key(&part) {
                self.ask_store(part, &command);
            }
        }
    }

    /// The store is lost: the image is streamed again, and what the store had not answered is asked of the link.
    /// [`SessionEvent::KeepLost`] says so.
    pub fn give_up_keep(&mut self, now: Instant, problem: String) {
        let Some(keep) = self.keep.take() else { return };
        self.refuse_keep(now, problem.clone());
        self.answers
            .push_back(Output::Event(SessionEvent::KeepLost(problem)));
        self.session.set_independent(now, false);
        for Part { id, offset, length } in keep.unanswered() {
            let command = Command::Read { offset, length };
            self.session.submit(now, id, CommandFlags::empty(), command);
        }
        self.absorb(now);
    }

    fn tell_keep(&mut self, now: Instant) {
        if let Some(state) = self.keep.as_mut().and_then(|keep| keep.report(now)) {
            self.set_keep_state(now, state);
        }
    }

    fn set_keep_state(&mut self, now: Instant, state: KeepState) {
        self.session.set_keep(now, Some(state.clone()));
        self.keep_state = Some(state);
    }
}

/// The answer to what is no read, of a disk that is read-only and whose image is here. The shape of the answer to a
/// BLOCK_STATUS takes a failure for the news that all is data.
fn answer_without_link(command: &Command) -> Result<Reply, Errno> {
    match command {
        Command::BlockStatus { .. } => Err(Errno::EIO),
        _ => Ok(Reply::Done),
    }
}
