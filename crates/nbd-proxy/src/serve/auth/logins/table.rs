//! Logins and their cookies over time. All times are seconds since 1970.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::secret::Digest;

/// A login that nobody uses ends after this.
const IDLE: u64 = 12 * 3600;
/// Every login ends after this.
const LONGEST: u64 = 30 * 24 * 3600;
/// A cookie's value is replaced after this.
const RENEWAL: u64 = 3600;
/// How long the old value is taken once the new one was seen: requests that were under way carry it.
const OVERLAP: u64 = 60;
/// How late it may be remembered that a login was used.
const GRAIN: u64 = 600;
/// Logins of one user; whoever signs in once more loses the one that was not used for longest.
const PER_USER: usize = 64;
/// Logins of all users, likewise.
const MOST: usize = 1024;

/// One browser that signed in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Login {
    id: String,
    user: String,
    means: Means,
    created: u64,
    seen: u64,
    value: Value,
    old: Option<OldValue>,
    #[serde(skip)]
    revoked: Arc<AtomicBool>,
}

/// By what somebody signed in. The login ends with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub(in crate::serve::auth) enum Means {
    /// The secret in an address that was printed, of this server or of one before it.
    Address,
    /// A password.
    Password {
        /// Of what was kept of it then.
        print: Digest,
    },
    /// A token for programs.
    Token {
        /// Of the token.
        sha256: Digest,
    },
}

/// What the cookie is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Value {
    digest: Digest,
    since: u64,
}

/// What the cookie was.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldValue {
    digest: Digest,
    /// None while nobody has presented the new one: it may never have arrived.
    until: Option<u64>,
}

impl Login {
    pub(super) fn new(id: String, user: &str, means: Means, digest: Digest, now: u64) -> Self {
        Self {
            id,
            user: user.to_owned(),
            means,
            created: now,
            seen: now,
            value: Value { digest, since: now },
            old: None,
            revoked: Arc::default(),
        }
    }

    fn is_expired(&self, now: u64) -> bool {
        now.saturating_sub(self.created) >= LONGEST || now.saturating_sub(self.seen) >= IDLE
    }
}

/// A login that a cookie belongs to.
#[derive(Debug, Clone)]
pub(in crate::serve::auth) struct Found {
    /// Names the login, and opens nothing.
    pub(in crate::serve::auth) id: String,
    /// Whose it is.
    pub(in crate::serve::auth) user: String,
    /// By what they signed in.
    pub(in crate::serve::auth) means: Means,
    revoked: Arc<AtomicBool>,
    /// Whether the cookie has its newest value.
    newest: bool,
}

impl Found {
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has ended it, which its own end isn't: what it has opened may go on then.
    pub(in crate::serve::auth) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }
}

/// All logins.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Login>);

impl Table {
    pub(super) fn all(&self) -> &[Login] {
        &self.0
    }

    pub(super) fn insert_all(&mut self, logins: Vec<Login>, now: u64) {
        for login in logins {
            self.insert(login, now);
        }
    }

    /// Makes room if need be.
    pub(super) fn insert(&mut self, login: Login, now: u64) {
        self.drop_expired(now);
        let of_user = |one: &Login| one.user == login.user;
        if self.0.iter().filter(|one| of_user(one)).count() >= PER_USER {
            self.drop_idlest(of_user);
        } else if self.0.len() >= MOST {
            self.drop_idlest(|_| true);
        }
        self.0.push(login);
    }

    fn drop_idlest(&mut self, among: impl Fn(&Login) -> bool) {
        let idlest = (self.0.iter().enumerate())
            .filter(|(_, one)| among(one))
            .min_by_key(|(_, one)| one.seen)
            .map(|(index, _)| index);
        if let Some(index) = idlest {
            self.0.remove(index);
        }
    }

    pub(super) fn drop_expired(&mut self, now: u64) {
        self.0.retain(|login| !login.is_expired(now));
    }

    /// The login whose cookie has this digest. Seeing the new value begins the end of the old one.
    pub(super) fn find(&mut self, digest: Digest, now: u64) -> Option<Found> {
        for login in self.0.iter_mut().filter(|login| !login.is_expired(now)) {
            let newest = login.value.digest == digest;
            if newest && let Some(old) = &mut login.old {
                old.until.get_or_insert(now.saturating_add(OVERLAP));
            }
            let was = login.old.as_ref().is_some_and(|old| {
                old.digest == digest && old.until.is_none_or(|until| now < until)
            });
            if newest || was {
                return Some(Found {
                    id: login.id.clone(),
                    user: login.user.clone(),
                    means: login.means.clone(),
                    revoked: Arc::clone(&login.revoked),
                    newest,
                });
            }
        }
        None
    }

    /// Makes `fresh` the value of the cookie if it is time: of the newest value when that is old enough, and of an
    /// older one when its successor seems never to have arrived.
    pub(super) fn renew(&mut self, found: &Found, fresh: Digest, now: u64) -> bool {
        let Some(login) = self.0.iter_mut().find(|login| login.id == found.id) else {
            return false;
        };
        let unseen = login.old.as_ref().is_some_and(|old| old.until.is_none());
        let age = now.saturating_sub(login.value.since);
        let due = match found.newest {
            true => age >= RENEWAL,
            false => unseen && age >= OVERLAP,
        };
        if !due {
            return false;
        }
        let value = Value {
            digest: fresh,
            since: now,
        };
        let before = std::mem::replace(&mut login.value, value);
        if found.newest {
            login.old = Some(OldValue {
                digest: before.digest,
                until: None,
            });
        }
        true
    }

    /// It is in use. Returns whether that is worth being remembered.
    pub(super) fn touch(&mut self, id: &str, now: u64) -> bool {
        match self.0.iter_mut().find(|login| login.id == id) {
            Some(login) if now.saturating_sub(login.seen) >= GRAIN => {
                login.seen = now;
                true
            }
            _ => false,
        }
    }

    pub(super) fn remove(&mut self, id: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|login| login.id != id);
        self.0.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_800_000_000;

    fn digest(text: &str) -> Digest {
        Digest::of(text)
    }

    fn login(id: &str, user: &str, value: &str, now: u64) -> Login {
        Login::new(id.to_owned(), user, Means::Address, digest(value), now)
    }

    fn table() -> Table {
        let mut table = Table::default();
        table.insert(login("a", "eva", "first", START), START);
        table
    }

    fn user(table: &mut Table, value: &str, now: u64) -> Option<String> {
        table.find(digest(value), now).map(|found| found.user)
    }

    /// Gives the login a new value the way a request with `value` does.
    fn renew(table: &mut Table, value: &str, fresh: &str, now: u64) -> bool {
        let found = table.find(digest(value), now).unwrap();
        table.renew(&found, digest(fresh), now)
    }

    #[test]
    fn a_login_that_is_used_lives_and_one_that_is_not_ends() {
        let mut table = table();
        let mut now = START;
        for _ in 0..4 {
            now += IDLE - 1;
            assert_eq!(user(&mut table, "first", now).as_deref(), Some("eva"));
            assert!(table.touch("a", now));
            assert!(!table.touch("a", now + GRAIN - 1));
        }
        assert_eq!(user(&mut table, "first", now + IDLE), None);
    }

    #[test]
    fn every_login_ends_once() {
        let mut table = table();
        let mut now = START;
        while now < START + LONGEST {
            assert!(user(&mut table, "first", now).is_some());
            table.touch("a", now);
            now += IDLE / 2;
        }
        assert_eq!(user(&mut table, "first", now), None);
        table.drop_expired(now);
        assert!(table.all().is_empty());
    }

    #[test]
    fn an_old_cookie_gets_a_new_value_and_is_taken_for_as_long_as_requests_may_be_under_way() {
        let mut table = table();
        assert!(!renew(&mut table, "first", "second", START + RENEWAL - 1));
        let later = START + RENEWAL;
        assert!(renew(&mut table, "first", "second", later));
        assert!(!renew(&mut table, "first", "third", later));
        assert!(user(&mut table, "second", later + 1).is_some());
        assert!(user(&mut table, "first", later + OVERLAP).is_some());
        assert_eq!(user(&mut table, "first", later + 1 + OVERLAP), None);
        assert!(user(&mut table, "second", later + 1 + OVERLAP).is_some());
    }

    #[test]
    fn a_browser_that_never_got_the_new_value_is_not_locked_out() {
        let mut table = table();
        let later = START + RENEWAL;
        assert!(renew(&mut table, "first", "lost", later));
        assert!(renew(&mut table, "first", "third", later + OVERLAP));
        assert_eq!(user(&mut table, "lost", later + OVERLAP), None);
        assert!(user(&mut table, "third", later + OVERLAP).is_some());
        assert_eq!(user(&mut table, "first", later + 2 * OVERLAP), None);
    }

    #[test]
    fn the_table_has_an_end_and_one_user_cannot_fill_it() {
        let mut table = table();
        for number in 0..2 * PER_USER {
            let now = START + 1 + number as u64;
            let name = format!("m{number}");
            table.insert(login(&name, "max", &name, now), now);
        }
        assert_eq!(table.all().len(), PER_USER + 1);
        assert!(user(&mut table, "first", START + 200).is_some());
        for number in 0..2 * MOST {
            let name = format!("u{number}");
            let now = START + 1000 + number as u64;
            table.insert(login(&name, &name, &name, now), now);
        }
        assert_eq!(table.all().len(), MOST);
    }

    #[test]
    fn a_clock_that_is_set_back_ends_nothing() {
        let mut table = table();
        assert!(user(&mut table, "first", START - LONGEST).is_some());
    }
}
