//! How much memory the clients of one device may hold together: the data of writes on their way in, of requests that are
//! being carried out, and of replies on their way out.
//!
//! Whoever finds nothing left waits in line, however many requests the others have; nobody fails.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};

use super::DeviceRequest;

/// Bytes that the clients of one device hold at most, usually: two requests of the greatest length.
pub(crate) const BUDGET: usize = 64 << 20;

/// Where the clients of one device take their requests to, and what they share.
#[derive(Debug, Clone)]
pub(crate) struct Inlet {
    pub(super) requests: mpsc::Sender<DeviceRequest>,
    budget: Arc<Budget>,
}

impl Inlet {
    /// For clients that hold `memory` bytes together at most; one request may exceed it.
    pub(super) fn new(requests: mpsc::Sender<DeviceRequest>, memory: usize) -> Self {
        Self {
            requests,
            budget: Arc::new(Budget::new(memory)),
        }
    }

    /// A client's share, which is nothing yet.
    pub(super) fn share(&self) -> Share {
        Share {
            budget: Arc::clone(&self.budget),
            held: None,
            granted: 0,
            wanted: None,
        }
    }
}

#[derive(Debug)]
struct Budget {
    bytes: Arc<Semaphore>,
    total: usize,
    /// How many clients wait in line.
    waiting: AtomicUsize,
}

impl Budget {
    fn new(total: usize) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(total)),
            total,
            waiting: AtomicUsize::new(0),
        }
    }
}

/// What one client holds of its device's budget.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: Option<OwnedSemaphorePermit>,
    /// Of that, what was waited for and is not used yet.
    granted: usize,
    wanted: Option<Wanted>,
}

type Grant = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A place in line.
struct Wanted {
    bytes: usize,
    grant: Grant,
    budget: Arc<Budget>,
}

impl Wanted {
    fn new(budget: &Arc<Budget>, bytes: usize) -> Self {
        budget.waiting.fetch_add(1, Ordering::Relaxed);
        Self {
            bytes,
            grant: Box::pin(Arc::clone(&budget.bytes).acquire_many_owned(permits(bytes))),
            budget: Arc::clone(budget),
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Wanted({} bytes)", self.bytes)
    }
}

impl Share {
    /// Takes `bytes`. False where they have to be waited for, by [`Self::granted`]; then they are to be asked for again.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let bytes = bytes.min(self.budget.total);
        if self.granted >= bytes {
            self.granted -= bytes;
            return true;
        }
        match Arc::clone(&self.budget.bytes).try_acquire_many_owned(permits(bytes)) {
            Ok(permit) => {
                self.hold(permit);
                true
            }
            Err(_) => {
                self.wanted = Some(Wanted::new(&self.budget, bytes));
                false
            }
        }
    }

    /// Whether something is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.wanted.is_some()
    }

    /// Waits until what was asked for is there. Cancel safe: the place in line stays.
    pub(super) async fn granted(&mut self) {
        let Some(Wanted { bytes, grant, .. }) = &mut self.wanted else {
            return std::future::pending().await;
        };
        let (bytes, permit) = (
            *bytes,
            poll_fn(|context| grant.as_mut().poll(context)).await,
        );
        self.wanted = None;
        // Nobody closes the semaphore.
        if let Ok(permit) = permit {
            self.hold(permit);
            self.granted += bytes;
        }
    }

    fn hold(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
    }

    /// How much that is, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives back all but `used` bytes.
    pub(super) fn shrink_to(&mut self, used: usize) {
        if let Some(held) = &mut self.held {
            let surplus = held.num_permits().saturating_sub(used + self.granted);
            drop(held.split(surplus));
        }
    }

    /// Whether other clients wait for what this one and others hold.
    pub(super) fn others_wait(&self) -> bool {
        self.budget.waiting.load(Ordering::Relaxed) > usize::from(self.is_waiting())
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares<const COUNT: usize>(total: usize) -> [Share; COUNT] {
        let (requests, _) = mpsc::channel(1);
        let inlet = Inlet {
            requests,
            budget: Arc::new(Budget::new(total)),
        };
        std::array::from_fn(|_| inlet.share())
    }

    #[tokio::test]
    async fn who_comes_first_is_served_first_even_by_those_who_want_less() {
        let [mut greedy, mut large, mut small] = shares(100);
        assert!(greedy.take(60));
        assert!(!large.take(50));
        // 40 are left, but whoever wants 50 was here before.
        tokio::select! {
            biased;
            () = large.granted() => panic!("there are 40"),
            () = std::future::ready(()) => {}
        }
        assert!(!small.take(10));
        assert!(greedy.others_wait());
        greedy.shrink_to(20);
        large.granted().await;
        assert!(large.take(50) && !large.is_waiting());
        small.granted().await;
        assert!(small.take(10));
        assert!(!greedy.others_wait());
    }

    #[tokio::test]
    async fn what_a_client_held_is_free_when_it_is_gone_also_its_place_in_line() {
        let [mut first, mut second, mut third] = shares(100);
        assert!(first.take(100) && !second.take(100) && !third.take(100));
        drop(second);
        assert!(first.others_wait());
        drop(first);
        third.granted().await;
        assert!(third.take(100) && !third.others_wait());
    }

    #[tokio::test]
    async fn more_than_there_is_at_all_is_as_much_as_there_is() {
        let [mut only] = shares(100);
        assert!(only.take(1000));
        only.shrink_to(1000);
        only.shrink_to(0);
        assert!(only.take(100));
    }
}
