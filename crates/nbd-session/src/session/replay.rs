//! Writes that the peer answered but may still lose.
//!
//! A server may keep what it answered in memory until a FLUSH. When it comes back after a loss it may have forgotten
//! any of it (a reloaded page, a restarted sharer), while the machine rightly believes that it is written. So each
//! WRITE, TRIM and WRITE_ZEROES is kept until a FLUSH that was sent after its answer has succeeded, and all that are
//! kept are done again, in order, on every new link before anything else is asked.

use std::collections::BTreeMap;

use nbd::Command;
use nbd::wire::CommandFlags;

/// What an entry takes besides its data, in bytes.
const ENTRY: u64 = 128;

/// The answered writes that no FLUSH has covered yet, in the order of their answers.
#[derive(Debug)]
pub(super) struct ReplayLog {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    bytes: u64,
    limit: u64,
    lost: bool,
    /// When a write last ended in a way that leaves open what the peer has.
    unsure: Option<Watermark>,
    strikes: u8,
}

/// One answered write.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) flags: CommandFlags,
    pub(super) command: Command,
}

/// All writes that were answered before a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watermark(u64);

impl ReplayLog {
    /// An empty log of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            next: 0,
            bytes: 0,
            limit,
            lost: false,
            unsure: None,
            strikes: 0,
        }
    }

    /// Keeps a write that was answered.
    pub(super) fn push(&mut self, flags: CommandFlags, command: Command) {
        self.bytes += Self::cost(&command);
        self.entries.insert(self.next, Entry { flags, command });
        self.next += 1;
    }

    /// How much keeping `command` takes, in bytes.
    pub(super) fn cost(command: &Command) -> u64 {
        match command {
            Command::Write { data, .. } => ENTRY + data.len() as u64,
            _ => ENTRY,
        }
    }

    /// Whether `cost` more bytes can be kept.
    pub(super) fn has_room(&self, cost: u64) -> bool {
        self.bytes + cost <= self.limit
    }

    /// Whether there is nothing to replay.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries to replay, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.entries.keys().copied()
    }

    /// The entry `id`, unless it was flushed meanwhile.
    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// What a FLUSH that is sent now covers.
    pub(super) fn watermark(&self) -> Watermark {
        Watermark(self.next)
    }

    /// A FLUSH succeeded.
    pub(super) fn flushed(&mut self, covered: Watermark) {
        self.entries = self.entries.split_off(&covered.0);
        self.bytes = self
            .entries
            .values()
            .map(|entry| Self::cost(&entry.command))
            .sum();
        self.strikes = 0;
        self.unsure = self.unsure.filter(|since| *since >= covered);
    }

    /// A write failed: the peer may have some of it, or lose it again, until the next FLUSH.
    pub(super) fn doubt(&mut self) {
        self.unsure = Some(self.watermark());
        self.next += 1;
    }

    /// Whether what the peer shows now is what it will show after a loss.
    pub(super) fn is_settled(&self) -> bool {
        self.entries.is_empty() && self.unsure.is_none()
    }

    /// The entry `id` cannot be written any more: the next FLUSH has to say so.
    pub(super) fn lose(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.bytes -= Self::cost(&entry.command);
            self.lost = true;
            self.doubt();
        }
    }

    /// Forgets everything, since the peer will not make it safe: the next FLUSH has to say so.
    pub(super) fn give_up(&mut self) {
        self.clear();
        self.lost = true;
        self.doubt();
    }

    /// Whether writes were lost since this was last asked.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// All entries were done again.
    pub(super) fn replayed(&mut self) {
        self.strikes = 0;
    }

    /// Replaying, or a FLUSH of our own, was not answered in time. Gives whether to give up, the second time.
    pub(super) fn strike(&mut self) -> bool {
        self.strikes += 1;
        let give_up = self.strikes == 2;
        self.strikes %= 2;
        give_up
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd::Payload;

    fn write(offset: u64) -> Command {
        Command::Write {
            offset,
            data: Payload::zeros(512),
        }
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_was_sent() {
        let mut log = ReplayLog::new(1 << 20);
        log.push(CommandFlags::empty(), write(0));
        let sent = log.watermark();
        log.push(CommandFlags::empty(), write(512));
        log.flushed(sent);
        assert_eq!(
            log.ids()
                .map(|id| log.get(id).unwrap().command.offset())
                .collect::<Vec<_>>(),
            [512]
        );
        log.flushed(sent);
        assert!(!log.is_empty());
        log.flushed(log.watermark());
        assert!(log.is_empty());
        assert_eq!(log.bytes, 0);
    }

    #[test]
    fn room_counts_data_and_entries() {
        let mut log = ReplayLog::new(2 * (512 + ENTRY));
        assert!(log.has_room(ReplayLog::cost(&write(0))));
        log.push(CommandFlags::empty(), write(0));
        log.push(CommandFlags::empty(), write(0));
        assert!(!log.has_room(1));
        log.lose(0);
        assert!(log.has_room(ReplayLog::cost(&write(0))));
    }

    #[test]
    fn a_failed_write_is_in_doubt_until_a_later_flush() {
        let mut log = ReplayLog::new(1 << 20);
        let before = log.watermark();
        log.doubt();
        assert!(!log.is_settled());
        log.flushed(before);
        assert!(!log.is_settled());
        log.flushed(log.watermark());
        assert!(log.is_settled());
    }

    #[test]
    fn a_lost_write_is_told_once() {
        let mut log = ReplayLog::new(1 << 20);
        log.push(CommandFlags::empty(), write(0));
        assert!(!log.take_lost());
        log.lose(0);
        assert!(!log.is_settled());
        assert!(log.take_lost());
        assert!(!log.take_lost());
    }
}
