//! What a session asks its link for, and what it does with the answers.

use std::time::Instant;

use bytes::Bytes;
use nbd::wire::{CommandFlags, Errno, TransmissionFlags};
use nbd::{Command, Failure, Reply};

use super::config::{LinkKind, Output, SessionEvent};
use super::flight::{Arrival, Job, Landing, Moment};
use super::identity::Identity;
use super::link::Stage;
use super::replay::ReplayLog;
use super::requests::{Request, range_of};
use super::seen::{self, Block};
use super::{Session, State};
use crate::control::printable;
use crate::reason::Fault;

/// How many answered writes are replayed at a time.
const REPLAYS_AT_ONCE: usize = 64;

impl Session {
    /// Takes bytes, whatever stage the link is at.
    pub(super) fn receive(&mut self, now: Instant, data: Bytes) -> Result<(), Fault> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if matches!(link.stage, Stage::Handshake(_)) {
            self.shake_hands(data)?;
        } else {
            link.receive(data);
        }
        while let Some(arrival) = self
            .link
            .as_mut()
            .map_or(Ok(None), |link| link.poll_arrival(now))?
        {
            match arrival {
                Arrival::Data(number, offset, data) => self.pass_on(number, offset, data),
                Arrival::Landed(landing) => self.settle(landing)?,
            }
        }
        if let Some(link) = &mut self.link {
            link.settle();
        }
        Ok(())
    }

    /// Bytes of a streamed request have come.
    fn pass_on(&mut self, number: u64, offset: u64, data: Bytes) {
        if let Some(request) = self.requests.get(number) {
            self.outputs.push_back(Output::Arrived {
                request: request.id,
                offset,
                data,
            });
        }
    }

    fn shake_hands(&mut self, data: Bytes) -> Result<(), Fault> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.kind == LinkKind::V1 && link.image.is_none() {
            return Err(Fault::violation("NBD bytes before the `image` message"));
        }
        let (id, kind, image) = (link.id, link.kind, link.image.clone());
        let (output, export) = link.shake_hands(data);
        self.send_bytes(id, output);
        let Some(export) = export? else { return Ok(()) };
        let offered = Identity::new(export, image, kind, &self.config)?;
        match &self.identity {
            None => self.begin(offered),
            Some(identity) => {
                identity.check_same(&offered, self.writes > 0)?;
                let blocks = self.seen.choose();
                self.enter(Stage::Comparing, blocks.into_iter().map(Job::Compare));
            }
        }
        Ok(())
    }

    /// The first link serves an image: it is the session's from now on.
    fn begin(&mut self, identity: Identity) {
        let export = identity.export.clone();
        let minimum = export.effective_block_sizes().minimum;
        let mut edges = seen::edges(export.size, minimum, identity.max_request);
        if self.config.one_link {
            edges.clear();
        }
        self.identity = Some(identity);
        self.state = State::Served;
        self.enter(Stage::Serving, edges.into_iter().map(Job::Edge));
        self.outputs
            .push_back(Output::Event(SessionEvent::Ready(export)));
    }

    /// Does everything that can be done now: the next stages, then requests as far as they fit.
    pub(super) fn pump(&mut self, now: Instant) {
        loop {
            self.advance(now);
            let Some((job, flags, command)) = self.next_job() else {
                return;
            };
            if let Err(fault) = self.send(now, job, flags, &command) {
                self.fail_link(now, &fault);
            }
        }
    }

    /// Takes the link through the stages that have nothing left to do.
    fn advance(&mut self, now: Instant) {
        if self.is_done_with(|stage| matches!(stage, Stage::Comparing)) {
            self.resume(now);
            let ids: Vec<_> = self.log.ids().collect();
            self.enter(Stage::Replaying, ids.into_iter().map(Job::Replay));
        }
        if self.is_done_with(|stage| matches!(stage, Stage::Replaying)) {
            self.log.replayed();
            self.enter(Stage::Serving, std::iter::empty());
        }
    }

    /// Whether the link is at `stage` and has nothing left to ask or wait for.
    pub(super) fn is_done_with(&self, stage: impl Fn(&Stage) -> bool) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| stage(&link.stage) && link.agenda.is_empty() && link.is_idle())
    }

    fn enter(&mut self, stage: Stage, agenda: impl Iterator<Item = Job>) {
        if let Some(link) = &mut self.link {
            link.stage = stage;
            link.agenda = agenda.collect();
        }
    }

    /// The next thing that may be sent now.
    fn next_job(&mut self) -> Option<(Job, CommandFlags, Command)> {
        self.next_of_agenda()
            .or_else(|| self.next_flush())
            .or_else(|| self.next_request())
    }

    pub(super) fn next_of_agenda(&mut self) -> Option<(Job, CommandFlags, Command)> {
        let link = self.link.as_mut()?;
        let (flags, command) = loop {
            match link.agenda.front()? {
                Job::Compare(block) => break (CommandFlags::empty(), block.read()),
                Job::Edge(range) => break (CommandFlags::empty(), read(range)),
                Job::Replay(id) => match self.log.get(*id) {
                    Some(entry) => break (entry.flags, entry.command.clone()),
                    None => drop(link.agenda.pop_front()),
                },
                Job::Flush(_) | Job::Request(..) | Job::Abandoned => return None,
            }
        };
        let range = range_of(&command);
        let again = |job: &Job| match job {
            Job::Replay(id) => self
                .log
                .get(*id)
                .is_some_and(|entry| seen::overlap(&range_of(&entry.command), &range)),
            _ => false,
        };
        let has_to_wait =
            command.is_write() && (link.jobs().len() >= REPLAYS_AT_ONCE || link.jobs().any(again));
        if has_to_wait || !link.fits(&command, &self.config) {
            return None;
        }
        Some((link.agenda.pop_front()?, flags, command))
    }

    /// A FLUSH of our own, where the log is too full for the next write.
    fn next_flush(&mut self) -> Option<(Job, CommandFlags, Command)> {
        let link = self.link.as_ref().filter(|link| link.is_serving())?;
        let waiting = &self.requests.first_waiting()?.command;
        if self.has_room_for(waiting)
            || self.log.is_empty()
            || !link.fits(&Command::Flush, &self.config)
        {
            return None;
        }
        if link.jobs().any(|job| matches!(job, Job::Flush(_))) {
            return None;
        }
        Some((
            Job::Flush(self.moment()),
            CommandFlags::empty(),
            Command::Flush,
        ))
    }

    fn next_request(&mut self) -> Option<(Job, CommandFlags, Command)> {
        let link = self.link.as_ref().filter(|link| link.is_serving())?;
        let place = self.requests.next(|command| {
            link.fits(command, &self.config)
                && self.is_allowed(link, command)
                && self.has_room_for(command)
        })?;
        let number = self.requests.take(place)?;
        let request = self.requests.get(number)?;
        let (flags, command) = (request.flags, request.command.clone());
        self.spend(link.cost(&command));
        Some((Job::Request(number, self.moment()), flags, command))
    }

    /// Whether the log can keep `command`, besides the writes that are on the link.
    fn has_room_for(&self, command: &Command) -> bool {
        if !command.is_write() || !self.has_flush() {
            return true;
        }
        let coming: u64 = self.requests.changing().map(ReplayLog::cost).sum();
        self.log.has_room(coming + ReplayLog::cost(command))
    }

    /// The length of the peer's blocks, in bytes.
    fn minimum_block(&self) -> u32 {
        self.export()
            .map_or(1, |export| export.effective_block_sizes().minimum)
    }

    /// Whether writes can be flushed. Where they can't, a write that was answered is as safe as it gets.
    fn has_flush(&self) -> bool {
        self.export()
            .is_some_and(|export| export.flags.contains(TransmissionFlags::SEND_FLUSH))
    }

    fn moment(&self) -> Moment {
        let is_writing = self.requests.changing().next().is_some();
        Moment {
            settled: (!is_writing).then_some(self.writes),
            answered: self.log.watermark(),
        }
    }

    pub(super) fn send(
        &mut self,
        now: Instant,
        job: Job,
        flags: CommandFlags,
        command: &Command,
    ) -> Result<(), Fault> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if command.is_write() {
            self.writes += 1;
            self.seen.forget(&range_of(command));
        }
        let id = link.id;
        let is_streamed = match &job {
            Job::Request(number, _) => self
                .requests
                .get(*number)
                .is_some_and(|request| request.is_streamed),
            _ => false,
        };
        match link.send(job, flags, command, is_streamed, now) {
            Ok(parts) => {
                self.send_bytes(id, parts);
                Ok(())
            }
            Err(job) => self.settle(Landing {
                job,
                result: Err(Failure::from(Errno::EINVAL)),
            }),
        }
    }

    /// A job is done.
    fn settle(&mut self, landing: Landing) -> Result<(), Fault> {
        let Landing { job, result } = landing;
        match (job, result) {
            (Job::Compare(block), result) => return self.check(&block, result),
            (Job::Replay(_), Ok(_)) | (Job::Abandoned, _) => {}
            (Job::Replay(id), Err(_)) => self.log.lose(id),
            (Job::Edge(range), Ok(Reply::Data(data))) if self.writes == 0 => {
                self.seen.record_edge(range.start, &data);
            }
            (Job::Edge(_), _) => {}
            (Job::Flush(moment), Ok(_)) => self.log.flushed(moment.answered),
            (Job::Flush(_), Err(_)) => self.log.give_up(),
            (Job::Request(number, moment), result) => {
                if let Some(request) = self.requests.remove(number) {
                    self.answer(request, moment, result);
                }
            }
        }
        Ok(())
    }

    /// Checks a block of a resuming link's image.
    fn check(&self, block: &Block, result: Result<Reply, Failure>) -> Result<(), Fault> {
        let end = block.offset + u64::from(block.length);
        let place = format!("bytes {} to {end}", block.offset);
        match result {
            Ok(Reply::Data(data)) if self.seen.matches(block, &data) => Ok(()),
            Ok(_) => Err(Fault::other_image(format_args!(
                "{place} are not those of the session's image"
            ))),
            Err(failure) => {
                let cause = printable(&failure.to_string());
                Err(Fault::other_image(format_args!(
                    "{place} cannot be compared with the session's image: {cause}"
                )))
            }
        }
    }

    fn answer(&mut self, request: Request, moment: Moment, result: Result<Reply, Failure>) {
        let Request {
            id, flags, command, ..
        } = request;
        let mut result = result.map_err(|failure| errno_of_device(failure.errno));
        match (&result, command) {
            (Ok(Reply::Data(data)), Command::Read { offset, .. })
                if self.is_settled_since(moment) =>
            {
                self.seen.record(offset, data, self.minimum_block());
            }
            (Ok(_), Command::Flush) => {
                self.log.flushed(moment.answered);
                if self.log.take_lost() {
                    result = Err(Errno::EIO);
                }
            }
            (Ok(_), command) if command.is_write() && self.has_flush() => {
                self.log.push(flags, command);
            }
            (Err(_), command) if command.is_write() && self.has_flush() => self.log.doubt(),
            _ => {}
        }
        self.complete(id, result);
    }

    /// Whether what was read since `moment` will still be there after a loss: no write was under way meanwhile, and
    /// none is waiting for a FLUSH.
    fn is_settled_since(&self, moment: Moment) -> bool {
        moment.settled == Some(self.writes) && self.log.is_settled()
    }

    /// Finds what was not answered in time. The first time that is the link's fault; the second time a request fails,
    /// and the link is lost only where something may still come of it.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Fault> {
        let link = self.link.as_mut()?;
        let overdue = link.take_overdue(&self.config, now);
        let of_log =
            |cookie: &u64| matches!(link.job(*cookie), Some(Job::Replay(_) | Job::Flush(_)));
        if overdue.iter().any(of_log) && self.log.strike() {
            self.log.give_up();
        }
        let lost = overdue
            .into_iter()
            .filter(|cookie| !self.expire_one(*cookie))
            .count();
        let seconds = self.config.timeout.as_secs();
        (lost > 0).then(|| {
            Fault::timeout(format_args!(
                "a request was not answered within {seconds} s"
            ))
        })
    }

    /// The request `cookie` is late. Gives whether the link can be kept.
    fn expire_one(&mut self, cookie: u64) -> bool {
        let Some(link) = &mut self.link else {
            return true;
        };
        let Some(&Job::Request(number, _)) = link.job(cookie) else {
            return false;
        };
        if self.requests.strike(number) == 1 {
            return false;
        }
        let Some(request) = self.requests.remove(number) else {
            return true;
        };
        let is_write = request.command.is_write();
        if is_write && self.has_flush() {
            self.log.doubt();
        }
        self.complete(request.id, Err(Errno::EIO));
        !is_write && self.link.as_mut().is_some_and(|link| link.abandon(cookie))
    }
}

/// What a device is told: that a peer shuts down is no business of the machine's.
fn errno_of_device(errno: Errno) -> Errno {
    if errno == Errno::ESHUTDOWN {
        Errno::EIO
    } else {
        errno
    }
}

fn read(range: &std::ops::Range<u64>) -> Command {
    let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
    Command::Read {
        offset: range.start,
        length,
    }
}
