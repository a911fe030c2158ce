//! What a link carries, as seen from the replies: its round trip and its rate, and how much should therefore be on its
//! way.
//!
//! More than a line holds only waits in queues, where the machine's next small read waits behind it. So what is on its
//! way is bounded by the line's bandwidth-delay product, twice, and a little more: that never starves the line, at
//! least doubles with each round trip until the line is full, and keeps the wait in queues to about a round trip.
//! The rate is the highest that was seen lately, since replies also come slowly when little was asked
//! (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016, for the idea).

use std::time::{Duration, Instant};

/// This much may be on its way before anything is known, and in any case, in bytes.
pub(super) const FLOOR: u64 = 1 << 20;
/// What a peer may take for its work, besides the round trip, without the line running dry.
const WORK: Duration = Duration::from_millis(20);
/// For how long a rate is believed at least; at most twice as long.
const MEMORY: Duration = Duration::from_secs(5);
/// Rates are not measured over less time: what waited in a buffer comes at any rate.
const SHORTEST: Duration = Duration::from_millis(1);

/// The state of the measurement.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes that came, ever.
    delivered: u64,
    /// Of requests that were sent on an idle link: the last, or less where it was slow.
    round_trip: Option<Duration>,
    /// The highest rates of the present and of the previous period, in bytes a second.
    rates: [u64; 2],
    /// When the present period began.
    since: Instant,
}

/// The state when a request was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    pub(super) at: Instant,
    delivered: u64,
    /// Nothing else was on its way.
    alone: bool,
    answered: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            round_trip: None,
            rates: [0; 2],
            since: now,
        }
    }

    /// A request is being sent; `alone`, if nothing is on its way.
    pub(super) fn depart(&self, now: Instant, alone: bool) -> Departure {
        Departure {
            at: now,
            delivered: self.delivered,
            alone,
            answered: false,
        }
    }

    /// So many bytes of a reply came.
    pub(super) fn arrive(&mut self, now: Instant, departure: &mut Departure, bytes: u64) {
        self.delivered += bytes;
        if departure.alone && !departure.answered {
            let seen = now.saturating_duration_since(departure.at);
            // A long message is seen whole alone, so one late sample means little.
            let smooth = |known: Duration| seen.min(known * 3 / 4 + seen / 4);
            self.round_trip = Some(self.round_trip.map_or(seen, smooth));
        }
        departure.answered = true;
    }

    /// A reply has come to its end.
    pub(super) fn land(&mut self, now: Instant, departure: &Departure) {
        let passed = now.saturating_duration_since(departure.at);
        let bytes = u128::from(self.delivered - departure.delivered);
        let rate = bytes * 1_000_000_000 / passed.max(SHORTEST).as_nanos();
        if now.saturating_duration_since(self.since) >= MEMORY {
            self.rates = [0, self.rates[0]];
            self.since = now;
        }
        self.rates[0] = self.rates[0].max(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    /// The highest rate of the last five to ten seconds, in bytes a second.
    pub(super) fn rate(&self) -> u64 {
        let [now, before] = self.rates;
        now.max(before)
    }

    /// How much should be on its way, in bytes.
    pub(super) fn budget(&self) -> u64 {
        let time = 2 * self.round_trip.unwrap_or_default() + WORK;
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        (self.rate().saturating_mul(time) / 1_000_000).max(FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A line that is kept full for `seconds`: what is on its way then, and what it carries in a round trip.
    fn fill(rate: u64, round_trip: Duration, request: u64, seconds: u64) -> (u64, u64) {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut flights = std::collections::VecDeque::new();
        let (mut now, mut free, mut in_flight) = (start, start, 0);
        while now < start + Duration::from_secs(seconds) {
            while in_flight == 0 || in_flight + request <= pace.budget() {
                let begins = free.max(now + round_trip);
                free = begins + Duration::from_nanos(request * 1_000_000_000 / rate);
                flights.push_back((pace.depart(now, in_flight == 0), begins, free));
                in_flight += request;
            }
            let (mut departure, begins, ends) = flights.pop_front().unwrap();
            pace.arrive(begins.max(now), &mut departure, 1);
            pace.arrive(ends, &mut departure, request - 1);
            pace.land(ends, &departure);
            now = ends;
            in_flight -= request;
        }
        let product = u128::from(rate) * round_trip.as_nanos() / 1_000_000_000;
        (pace.budget(), u64::try_from(product).unwrap())
    }

    #[test]
    fn a_line_is_filled_and_not_flooded() {
        for (megabits, milliseconds) in [(20, 200), (100, 50), (1000, 50), (1000, 500)] {
            let rate = megabits * 1_000_000 / 8;
            let (budget, product) = fill(rate, milliseconds * MILLISECOND, 256 << 10, 20);
            assert!(
                budget >= product + product / 2,
                "{megabits} Mbit/s: {budget} of {product}"
            );
            let most = 3 * product + rate / 20;
            assert!(
                budget <= most.max(FLOOR),
                "{megabits} Mbit/s: {budget} of {product}"
            );
        }
    }

    #[test]
    fn nothing_is_known_at_first_and_little_is_forgotten() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.budget(), FLOOR);
        let mut departure = pace.depart(start, true);
        pace.arrive(start + 100 * MILLISECOND, &mut departure, 20 << 20);
        pace.land(start + 100 * MILLISECOND, &departure);
        let fast = pace.budget();
        assert!(fast > 20 << 20);
        let mut slow = pace.depart(start + MEMORY, false);
        pace.arrive(start + MEMORY + 100 * MILLISECOND, &mut slow, 512);
        pace.land(start + MEMORY + 100 * MILLISECOND, &slow);
        assert_eq!(pace.budget(), fast);
        pace.land(start + 2 * MEMORY + 100 * MILLISECOND, &slow);
        assert!(pace.budget() < fast);
    }
}
