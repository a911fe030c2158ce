//! Who is told of how often: nobody is to fill a disk, nor to hide what others do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::event::Cause;
use crate::throttle::Throttle;

/// What one user, or all strangers together, cause is told so many times at once, and then once in this time.
const BURST: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(100);
/// Users with a count of their own. A proxy in front may name any number; the others count as strangers.
const USERS: usize = 1024;

/// One for strangers, and one for each user who has caused anything.
#[derive(Debug)]
pub(super) struct Throttles {
    strangers: Arc<Throttle>,
    users: Mutex<HashMap<String, Arc<Throttle>>>,
}

impl Throttles {
    pub(super) fn new() -> Self {
        Self {
            strangers: Arc::new(Throttle::new(BURST, INTERVAL)),
            users: Mutex::default(),
        }
    }

    /// Whether something is told; then how much of the same cause was not told before it.
    pub(super) fn admit(&self, cause: Cause<'_>, now: Instant) -> Option<u64> {
        match cause {
            Cause::Stranger => self.strangers.admit(now),
            Cause::User(user) => self.of(user).admit(now),
        }
    }

    fn of(&self, user: &str) -> Arc<Throttle> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = users.get(user) {
            return Arc::clone(known);
        }
        if users.len() >= USERS {
            return Arc::clone(&self.strangers);
        }
        let fresh = Arc::new(Throttle::new(BURST, INTERVAL));
        users.insert(user.to_owned(), Arc::clone(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hides_what_others_do() {
        let throttles = Throttles::new();
        let now = Instant::now();
        let (eva, max) = (Cause::User("eva"), Cause::User("max"));
        while throttles.admit(eva, now).is_some() {}
        assert_eq!(throttles.admit(eva, now), None);
        assert_eq!(throttles.admit(max, now), Some(0));
        assert_eq!(throttles.admit(Cause::Stranger, now), Some(0));
        assert_eq!(throttles.admit(eva, now + INTERVAL), Some(2));
    }

    #[test]
    fn users_who_are_remembered_have_an_end() {
        let throttles = Throttles::new();
        let now = Instant::now();
        for number in 0..USERS + 100 {
            throttles.admit(Cause::User(&number.to_string()), now);
        }
        assert_eq!(throttles.users.lock().unwrap().len(), USERS);
    }
}
