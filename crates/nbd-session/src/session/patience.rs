//! Which requests have waited too long.
//!
//! A request's time counts from when its answer could have begun: from its sending, or from the last byte that came of
//! it or of a request that was sent before it. So a slow line is not taken for a peer that hangs, and a peer that
//! answers everything but one request is still found out: what was sent later makes no difference.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests on their way, and when something came of them.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Cookies and times of sending, both ascending.
    sent: VecDeque<(u64, Instant)>,
    /// When something came of which request. Both ascend: what came later of an earlier request counts for all behind.
    marks: Vec<(u64, Instant)>,
}

impl Patience {
    /// A request is sent; cookies are ascending.
    pub(super) fn send(&mut self, now: Instant, cookie: u64) {
        self.sent.push_back((cookie, now));
    }

    /// Something came of a request.
    pub(super) fn hear(&mut self, now: Instant, cookie: u64) {
        while self.marks.last().is_some_and(|(last, _)| *last >= cookie) {
            self.marks.pop();
        }
        self.marks.push((cookie, now));
    }

    /// Forgets the oldest requests as far as they are answered.
    pub(super) fn settle(&mut self, is_waiting: impl Fn(u64) -> bool) {
        while self
            .sent
            .front()
            .is_some_and(|(cookie, _)| !is_waiting(*cookie))
        {
            self.sent.pop_front();
        }
        let oldest = self.sent.front().map_or(u64::MAX, |(cookie, _)| *cookie);
        let older = self.marks.partition_point(|(cookie, _)| *cookie <= oldest);
        self.marks.drain(..older.saturating_sub(1));
    }

    /// When the oldest request will have waited for too long.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        self.sent
            .front()
            .map(|(cookie, at)| self.since(*cookie, *at) + timeout)
    }

    /// Takes the requests that have waited too long.
    pub(super) fn take_overdue(&mut self, now: Instant, timeout: Duration) -> Vec<u64> {
        let is_overdue = |(cookie, at): &&(u64, Instant)| self.since(*cookie, *at) + timeout <= now;
        let count = self.sent.iter().take_while(is_overdue).count();
        self.sent.drain(..count).map(|(cookie, _)| cookie).collect()
    }

    /// When the time of a request began.
    fn since(&self, cookie: u64, sent: Instant) -> Instant {
        let behind = self.marks.partition_point(|(other, _)| *other <= cookie);
        let heard = behind.checked_sub(1).map(|last| self.marks[last].1);
        heard.map_or(sent, |heard| heard.max(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn sent(now: Instant, count: u64) -> Patience {
        let mut patience = Patience::default();
        (0..count).for_each(|cookie| patience.send(now, cookie));
        patience
    }

    #[test]
    fn what_comes_of_a_request_gives_time_to_those_behind_it_alone() {
        let start = Instant::now();
        let mut patience = sent(start, 4);
        patience.hear(start + 20 * SECOND, 2);
        assert_eq!(patience.deadline(TIMEOUT), Some(start + TIMEOUT));
        assert_eq!(patience.take_overdue(start + TIMEOUT, TIMEOUT), [0, 1]);
        assert_eq!(
            patience.deadline(TIMEOUT),
            Some(start + 20 * SECOND + TIMEOUT)
        );
    }

    #[test]
    fn a_slow_answer_is_no_silence() {
        let start = Instant::now();
        let mut patience = sent(start, 2);
        for at in 1..100 {
            patience.hear(start + at * 20 * SECOND, 0);
            assert!(
                patience
                    .take_overdue(start + at * 20 * SECOND, TIMEOUT)
                    .is_empty()
            );
        }
        patience.settle(|cookie| cookie != 0);
        let heard = start + 99 * 20 * SECOND;
        assert_eq!(patience.deadline(TIMEOUT), Some(heard + TIMEOUT));
        assert_eq!(patience.marks.len(), 1);
    }

    #[test]
    fn a_request_that_is_sent_after_others_were_answered_has_all_its_time() {
        let start = Instant::now();
        let mut patience = sent(start, 1);
        patience.hear(start + SECOND, 0);
        patience.settle(|_| false);
        assert_eq!(patience.deadline(TIMEOUT), None);
        patience.send(start + 5 * SECOND, 1);
        assert_eq!(
            patience.deadline(TIMEOUT),
            Some(start + 5 * SECOND + TIMEOUT)
        );
    }
}
