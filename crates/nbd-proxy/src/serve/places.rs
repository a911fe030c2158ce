//! Places for what lasts, such as links, of which nobody may take all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{Limit, Reached};

/// All places of one kind.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    all: Reached,
    of_one_user: Reached,
    /// How many each user has, of those who have any.
    taken: Mutex<HashMap<String, usize>>,
}

/// A place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    user: String,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new((all, most): (Limit, usize), (one, of_one): (Limit, usize)) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            all: Reached { limit: all, most },
            of_one_user: Reached {
                limit: one,
                most: of_one,
            },
            taken: Mutex::default(),
        })
    }

    /// A place for this user, or the limit that leaves none.
    pub(super) fn take(self: &Arc<Self>, user: &str) -> Result<Place, Reached> {
        let mut taken = self.taken();
        if taken.get(user).copied().unwrap_or_default() >= self.of_one_user.most {
            return Err(self.of_one_user);
        }
        let permit = Arc::clone(&self.free).try_acquire_owned();
        let permit = permit.map_err(|_| self.all)?;
        *taken.entry(user.to_owned()).or_default() += 1;
        Ok(Place {
            places: Arc::clone(self),
            user: user.to_owned(),
            _permit: permit,
        })
    }

    /// Waits until all of them are free.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.all.most).unwrap_or(u32::MAX);
        // Nobody closes the semaphore.
        let _ = self.free.acquire_many(all).await;
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places_and_nobody_more_than_there_are() {
        let places = Places::new((Limit::Links, 3), (Limit::LinksPerUser, 2));
        let first = places.take("eva").unwrap();
        let _second = places.take("eva").unwrap();
        let refused = places.take("eva").unwrap_err();
        assert_eq!((refused.limit, refused.most), (Limit::LinksPerUser, 2));
        let _third = places.take("max").unwrap();
        assert_eq!(places.take("max").unwrap_err().limit, Limit::Links);
        drop(first);
        assert!(places.take("eva").is_ok());
    }

    #[test]
    fn who_has_no_place_is_forgotten() {
        let places = Places::new((Limit::Links, 3), (Limit::LinksPerUser, 2));
        drop(places.take("eva").unwrap());
        assert!(places.taken().is_empty());
    }
}
