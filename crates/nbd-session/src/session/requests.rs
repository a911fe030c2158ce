//! What the device asked for and has no answer yet.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use nbd::Command;
use nbd::wire::CommandFlags;

use super::config::RequestId;
use super::seen::overlap;

/// Reads up to this length may overtake longer requests, in bytes: the machine waits for them one by one.
pub const SMALL_READ: u64 = 16 << 10;
/// How many small reads may overtake a request.
const OVERTAKES: u32 = 64;
/// How far behind the first waiting request a small read is looked for.
const REACH: usize = 64;

/// All unanswered requests. Those that wait to be sent are in a queue; the others are on the link.
#[derive(Debug, Default)]
pub(super) struct Requests {
    unanswered: BTreeMap<u64, Request>,
    queue: VecDeque<u64>,
    /// Ranges that are being changed on the link, in the order they were sent.
    changing: Vec<(u64, Range<u64>)>,
    next: u64,
    overtakes: u32,
}

/// One unanswered request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) flags: CommandFlags,
    pub(super) command: Command,
    /// The bytes of a READ are passed on as they come.
    pub(super) is_streamed: bool,
    strikes: u8,
}

impl Requests {
    /// Adds a request at the end of the queue.
    pub(super) fn push(
        &mut self,
        id: RequestId,
        flags: CommandFlags,
        command: Command,
        is_streamed: bool,
    ) {
        self.unanswered.insert(
            self.next,
            Request {
                id,
                flags,
                command,
                is_streamed,
                strikes: 0,
            },
        );
        self.queue.push_back(self.next);
        self.next += 1;
    }

    /// The request with this number.
    pub(super) fn get(&self, number: u64) -> Option<&Request> {
        self.unanswered.get(&number)
    }

    /// The request that waits longest.
    pub(super) fn first_waiting(&self) -> Option<&Request> {
        self.unanswered.get(self.queue.front()?)
    }

    /// Which waiting request may be sent next, as a place in the queue: the first, or where that does not fit or has
    /// to wait for a write to the same place, a small read behind it.
    pub(super) fn next(&self, fits: impl Fn(&Command) -> bool) -> Option<usize> {
        let command = &self.first_waiting()?.command;
        if fits(command) && !(command.is_write() && self.is_changing(&range_of(command))) {
            return Some(0);
        }
        if self.overtakes == OVERTAKES {
            return None;
        }
        self.queue.iter().take(REACH).position(|number| {
            let command = self.unanswered.get(number).map(|request| &request.command);
            command.is_some_and(|command| is_small_read(command) && fits(command))
        })
    }

    /// Takes the request at `place` from the queue: it is being sent.
    pub(super) fn take(&mut self, place: usize) -> Option<u64> {
        let number = self.queue.remove(place)?;
        self.overtakes = if place == 0 { 0 } else { self.overtakes + 1 };
        if let Some(request) = self
            .unanswered
            .get(&number)
            .filter(|request| request.command.is_write())
        {
            self.changing.push((number, range_of(&request.command)));
        }
        Some(number)
    }

    /// Takes a request that was sent and is answered.
    pub(super) fn remove(&mut self, number: u64) -> Option<Request> {
        let request = self.unanswered.remove(&number)?;
        if request.command.is_write() {
            self.changing.retain(|(changing, _)| *changing != number);
        }
        Some(request)
    }

    /// Whether anything waits to be sent.
    pub(super) fn is_any_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes a request back, if it waits to be sent.
    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        let found = self.queue.iter().rposition(|number| {
            self.unanswered
                .get(number)
                .is_some_and(|request| request.id == id)
        });
        let number = found.and_then(|place| self.queue.remove(place));
        number.is_some_and(|number| self.unanswered.remove(&number).is_some())
    }

    /// Takes all requests, in order: the session has ended.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Request> {
        self.queue.clear();
        self.changing.clear();
        std::mem::take(&mut self.unanswered).into_values()
    }

    /// Whatever was on the link waits again, in the order it was submitted.
    pub(super) fn requeue(&mut self) {
        self.queue = self.unanswered.keys().copied().collect();
        self.changing.clear();
        self.overtakes = 0;
    }

    /// Counts that a request was not answered in time; gives how often.
    pub(super) fn strike(&mut self, number: u64) -> u8 {
        self.unanswered.get_mut(&number).map_or(0, |request| {
            request.strikes = request.strikes.saturating_add(1);
            request.strikes
        })
    }

    /// Whether a write on the link overlaps `range`.
    fn is_changing(&self, range: &Range<u64>) -> bool {
        self.changing
            .iter()
            .any(|(_, changing)| overlap(changing, range))
    }

    /// The writes that are on the link.
    pub(super) fn changing(&self) -> impl Iterator<Item = &Command> {
        self.changing
            .iter()
            .filter_map(|(number, _)| Some(&self.unanswered.get(number)?.command))
    }
}

/// Whether it is a read that may overtake others.
pub(super) fn is_small_read(command: &Command) -> bool {
    matches!(command, Command::Read { length, .. } if u64::from(*length) <= SMALL_READ)
}

/// The bytes of the image that a command is about.
pub(super) fn range_of(command: &Command) -> Range<u64> {
    command.offset()..command.offset().saturating_add(command.length())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd::Payload;

    fn read(offset: u64, length: u32) -> Command {
        Command::Read { offset, length }
    }

    fn write(offset: u64, length: usize) -> Command {
        Command::Write {
            offset,
            data: Payload::zeros(length),
        }
    }

    fn queue(commands: impl IntoIterator<Item = Command>) -> Requests {
        let mut requests = Requests::default();
        for (id, command) in (0..).zip(commands) {
            requests.push(RequestId(id), CommandFlags::empty(), command, false);
        }
        requests
    }

    fn take_all_that_fit(requests: &mut Requests, fits: impl Fn(&Command) -> bool) -> Vec<u64> {
        std::iter::from_fn(|| requests.next(&fits).and_then(|place| requests.take(place))).collect()
    }

    #[test]
    fn requests_are_sent_in_order() {
        let mut requests = queue([
            read(0, 1 << 20),
            read(0, 512),
            write(0, 512),
            Command::Flush,
        ]);
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [0, 1, 2, 3]);
    }

    #[test]
    fn small_reads_overtake_long_ones_that_do_not_fit() {
        let mut requests = queue([
            read(0, 1 << 20),
            read(0, 1 << 20),
            read(0, 4096),
            write(0, 512),
        ]);
        assert_eq!(
            take_all_that_fit(&mut requests, |command| command.length() < 1 << 20),
            [2]
        );
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [0, 1, 3]);
    }

    #[test]
    fn a_long_read_is_not_overtaken_for_ever() {
        let mut requests = queue([read(0, 1 << 20)]);
        let only_small = |command: &Command| command.length() < 1 << 20;
        for _ in 0..OVERTAKES {
            requests.push(RequestId(9), CommandFlags::empty(), read(0, 512), false);
            assert_eq!(take_all_that_fit(&mut requests, only_small).len(), 1);
        }
        requests.push(RequestId(9), CommandFlags::empty(), read(0, 512), false);
        assert!(take_all_that_fit(&mut requests, only_small).is_empty());
        assert_eq!(take_all_that_fit(&mut requests, |_| true)[0], 0);
    }

    #[test]
    fn overlapping_writes_are_sent_one_after_the_other() {
        let mut requests = queue([
            write(0, 1024),
            write(512, 512),
            write(4096, 512),
            read(0, 512),
        ]);
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [0, 3]);
        requests.remove(0);
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [1, 2]);
    }

    #[test]
    fn after_a_loss_everything_waits_again_in_order() {
        let mut requests = queue([write(0, 512), read(0, 1 << 20), write(0, 512), read(0, 512)]);
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [0, 1, 3]);
        requests.remove(1);
        requests.requeue();
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [0, 3]);
        requests.remove(0);
        assert_eq!(take_all_that_fit(&mut requests, |_| true), [2]);
    }
}
