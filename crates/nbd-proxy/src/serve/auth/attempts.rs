//! Failures to sign in, and how they slow down those that follow.
//!
//! Two things are counted: failures from an address, whoever was meant, and failures to be a user, from wherever. A user
//! whom somebody else tries to guess is not locked out: addresses from which the user has signed in before are exempt
//! from the second count, and whoever has signed in already isn't asked.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The pause after the first failure that costs something; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Failures are forgotten after this time without another.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Addresses, users, and pairs of both that are remembered. Beyond it the oldest go.
const MOST: usize = 4096;

/// Who shares a count: an IPv4 address, or a network of 64 bits, which is the smallest that an IPv6 subscriber gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            address => Self(address),
        }
    }
}

/// All that is remembered of failures.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    from: HashMap<Source, Failures>,
    to_be: HashMap<String, Failures>,
    /// From where users have signed in.
    known: HashMap<(String, Source), Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// How many cost nothing, and the most that one costs.
struct Price {
    free: u32,
    longest: Duration,
}

const FROM_ADDRESS: Price = Price {
    free: 5,
    longest: Duration::from_secs(300),
};
/// More of them, since others can cause them, and cheaper, so that nobody can keep a user away for long.
const TO_BE_USER: Price = Price {
    free: 20,
    longest: Duration::from_secs(30),
};

impl Failures {
    fn pause(self, price: &Price, now: Instant) -> Option<Duration> {
        let factor = 2u32.saturating_pow(self.count.checked_sub(price.free)?);
        let pause = FIRST_PAUSE.saturating_mul(factor).min(price.longest);
        Some((self.last + pause).saturating_duration_since(now)).filter(|pause| !pause.is_zero())
    }

    fn forgive(&mut self) {
        self.count = self.count.saturating_sub(1);
    }
}

impl Attempts {
    /// How long to wait before an attempt is looked at; None: not at all.
    pub(super) fn pause(
        &self,
        source: Source,
        user: Option<&str>,
        now: Instant,
    ) -> Option<Duration> {
        let tables = self.tables();
        let from = (tables.from.get(&source)).and_then(|one| one.pause(&FROM_ADDRESS, now));
        let to_be = user
            .filter(|user| !tables.known.contains_key(&((*user).to_owned(), source)))
            .and_then(|user| tables.to_be.get(user)?.pause(&TO_BE_USER, now));
        from.max(to_be)
    }

    /// Somebody tries. That counts as a failure from now on, so that many at once are no way around it.
    pub(super) fn begun(&self, source: Source, user: Option<&str>, now: Instant) {
        let mut tables = self.tables();
        count(&mut tables.from, source, now);
        if let Some(user) = user {
            count(&mut tables.to_be, user.to_owned(), now);
        }
    }

    /// It was no failure. Those before it stay counted: whoever has an account could else guess another's for ever.
    pub(super) fn forgiven(&self, source: Source, user: Option<&str>) {
        let mut tables = self.tables();
        let from = tables.from.get_mut(&source);
        from.into_iter().for_each(Failures::forgive);
        let to_be = user.and_then(|user| tables.to_be.get_mut(user));
        to_be.into_iter().for_each(Failures::forgive);
    }

    /// The user has signed in from there.
    pub(super) fn succeeded(&self, source: Source, user: &str, now: Instant) {
        self.forgiven(source, Some(user));
        let mut tables = self.tables();
        make_room(&mut tables.known, |since| *since);
        tables.known.insert((user.to_owned(), source), now);
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count<K: Eq + Hash + Clone>(table: &mut HashMap<K, Failures>, key: K, now: Instant) {
    if !table.contains_key(&key) {
        make_room(table, |failures| failures.last);
    }
    let failures = table.entry(key).or_insert(Failures {
        count: 0,
        last: now,
    });
    if now.saturating_duration_since(failures.last) >= FORGOTTEN {
        failures.count = 0;
    }
    failures.count = failures.count.saturating_add(1);
    failures.last = now;
}

fn make_room<K: Eq + Hash + Clone, V>(table: &mut HashMap<K, V>, age: impl Fn(&V) -> Instant) {
    if table.len() < MOST {
        return;
    }
    let oldest = table.iter().min_by_key(|(_, value)| age(value));
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        table.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn host(number: u32) -> Source {
        Source(std::net::Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn failures_from_an_address_cost_ever_more_time_up_to_a_limit() {
        let attempts = Attempts::default();
        let here = source("192.0.2.1");
        let mut now = Instant::now();
        for _ in 1..FROM_ADDRESS.free {
            attempts.begun(here, None, now);
        }
        assert_eq!(attempts.pause(here, None, now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            attempts.begun(here, None, now);
            let pause = Duration::from_secs(seconds);
            assert_eq!(attempts.pause(here, None, now), Some(pause));
            assert_eq!(attempts.pause(source("192.0.2.2"), None, now), None);
            now += pause;
            assert_eq!(attempts.pause(here, None, now), None);
        }
        now += FORGOTTEN;
        attempts.begun(here, None, now);
        assert_eq!(attempts.pause(here, None, now), None);
    }

    #[test]
    fn a_network_of_64_bits_is_one_address() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for host in 0..FROM_ADDRESS.free {
            attempts.begun(source(&format!("2001:db8::{host}")), None, now);
        }
        let pause = |address: &str| attempts.pause(source(address), None, now);
        assert!(pause("2001:db8::ffff:1").is_some());
        assert_eq!(pause("2001:db8:0:1::1"), None);
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }

    #[test]
    fn guessing_one_user_from_many_addresses_is_slowed_down_too_but_never_for_long() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..TO_BE_USER.free {
            attempts.begun(host(number), Some("eva"), now);
        }
        let elsewhere = source("192.0.2.1");
        assert!(attempts.pause(elsewhere, Some("eva"), now).is_some());
        assert_eq!(attempts.pause(elsewhere, Some("max"), now), None);
        for number in 0..1000 {
            attempts.begun(host(number), Some("eva"), now);
        }
        let pause = attempts.pause(elsewhere, Some("eva"), now);
        assert_eq!(pause, Some(TO_BE_USER.longest));
    }

    #[test]
    fn a_user_who_is_guessed_by_others_gets_in_from_where_they_got_in_before() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let home = source("192.0.2.1");
        attempts.succeeded(home, "eva", now);
        for number in 0..2 * TO_BE_USER.free {
            attempts.begun(host(number), Some("eva"), now);
        }
        assert_eq!(attempts.pause(home, Some("eva"), now), None);
        for _ in 0..FROM_ADDRESS.free {
            attempts.begun(home, Some("eva"), now);
        }
        assert!(attempts.pause(home, Some("eva"), now).is_some());
    }

    #[test]
    fn an_account_of_ones_own_is_no_way_to_guess_anothers() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let here = source("192.0.2.1");
        for _ in 0..FROM_ADDRESS.free {
            attempts.begun(here, Some("eva"), now);
            attempts.begun(here, Some("max"), now);
            attempts.succeeded(here, "max", now);
        }
        assert!(attempts.pause(here, Some("eva"), now).is_some());
        attempts.forgiven(here, Some("eva"));
        assert_eq!(attempts.pause(here, Some("eva"), now), None);
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..MOST + 100 {
            let from = host(u32::try_from(number).unwrap());
            attempts.begun(from, Some(&number.to_string()), now);
            attempts.succeeded(from, &number.to_string(), now);
        }
        let tables = attempts.tables();
        assert_eq!(
            [tables.from.len(), tables.to_be.len(), tables.known.len()],
            [MOST; 3]
        );
    }
}
