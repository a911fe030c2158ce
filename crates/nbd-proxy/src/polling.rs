//! Adaptive polling: an event that is soon to come is waited for awake.
//!
//! A thread that sleeps takes some 10 µs to be woken, and more where its processor sleeps too; four such wakes are most
//! of the time of a small read. The I/O threads of QEMU do the same (`poll-max-ns`).

use std::{
    future::poll_fn,
    pin::pin,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use tokio::task::yield_now;

/// What is soon, and the longest that a wait is spent awake: about twice a small read over loopback.
const SOON: Duration = Duration::from_micros(200);

/// Whoever had the processor for longer when it was given away has more to do.
const BUSY: Duration = Duration::from_micros(25);

/// How many events in a row must have come soon: a page that sends an answer in two pieces is none that answers soon.
const ENOUGH: u32 = 8;

/// How a task waits for its events.
pub(crate) struct Polling {
    /// Who would bring the event has a processor of its own.
    has_others: bool,
    /// It sleeps where others have more to do.
    gives_way: bool,
    /// How many events in a row came soon, so that the next one may.
    soon: u32,
}

impl Polling {
    /// Of a task that is alone on its thread.
    pub(crate) fn new() -> Self {
        Self {
            has_others: thread::available_parallelism().is_ok_and(|count| count.get() > 1),
            gives_way: false,
            soon: 0,
        }
    }

    /// Of a task whose thread has others, and whose machine has: it sleeps where they have more to do.
    pub(crate) fn giving_way() -> Self {
        Self {
            gives_way: true,
            ..Self::new()
        }
    }

    /// Waits for an event: awake, if it is `urgent` and the last ones came soon. The other tasks of the thread go on
    /// meanwhile, and so does whoever waits for its processor.
    pub(crate) async fn wait<T>(&mut self, urgent: bool, event: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let mut event = pin!(event);
        if urgent && self.has_others && self.soon >= ENOUGH {
            loop {
                let polled = poll_fn(|context| Poll::Ready(event.as_mut().poll(context)));
                if let Poll::Ready(event) = polled.await {
                    return event;
                }
                let before = Instant::now();
                thread::yield_now();
                if self.gives_way_after(before.elapsed()) {
                    self.soon = 0;
                    return event.await;
                }
                yield_now().await;
                if start.elapsed() >= SOON {
                    break;
                }
            }
        }
        let event = event.await;
        let is_soon = start.elapsed() < SOON;
        self.soon = if is_soon {
            self.soon.saturating_add(1)
        } else {
            0
        };
        event
    }

    /// Whether it sleeps now that others had the processor for so long.
    fn gives_way_after(&self, away: Duration) -> bool {
        self.gives_way && away > BUSY
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Wake, Waker},
    };

    use super::*;

    /// How often a task that waits wakes itself, which it does where it stays awake.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn polling(has_others: bool, soon: u32) -> Polling {
        Polling {
            has_others,
            gives_way: false,
            soon,
        }
    }

    /// Whether it is still awake after it was polled once.
    fn stays_awake(wait: impl Future<Output = ()>) -> bool {
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        assert!(
            pin!(wait)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        wakes.0.load(Ordering::Relaxed) > 0
    }

    /// Of an event that is there.
    fn finish(wait: impl Future<Output = ()>) {
        assert!(
            pin!(wait)
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        );
    }

    #[test]
    fn an_urgent_event_that_may_come_soon_is_waited_for_awake() {
        assert!(stays_awake(polling(true, ENOUGH).wait(true, pending())));
    }

    #[test]
    fn no_other_event_is() {
        assert!(!stays_awake(polling(true, ENOUGH).wait(false, pending())));
        assert!(!stays_awake(
            polling(true, ENOUGH - 1).wait(true, pending())
        ));
        assert!(!stays_awake(polling(false, ENOUGH).wait(true, pending())));
    }

    #[test]
    fn who_waits_for_long_sleeps() {
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let mut polling = polling(true, ENOUGH);
        let mut wait = pin!(polling.wait(true, pending::<()>()));
        let mut seen = usize::MAX;
        while seen != wakes.0.load(Ordering::Relaxed) {
            seen = wakes.0.load(Ordering::Relaxed);
            assert!(
                wait.as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
        }
    }

    #[test]
    fn who_gives_way_sleeps_where_others_have_more_to_do() {
        let gives_way = Polling::giving_way();
        assert!(gives_way.gives_way_after(2 * BUSY));
        assert!(!gives_way.gives_way_after(BUSY));
        assert!(!Polling::new().gives_way_after(2 * BUSY));
    }

    #[test]
    fn after_an_event_that_was_late_enough_must_come_soon() {
        let mut polling = polling(true, ENOUGH);
        finish(polling.wait(false, async { thread::sleep(SOON) }));
        assert_eq!(polling.soon, 0);
        for _ in 0..ENOUGH - 1 {
            finish(polling.wait(false, ready(())));
        }
        assert!(!stays_awake(polling.wait(true, pending())));
        while polling.soon < ENOUGH {
            finish(polling.wait(false, ready(())));
        }
        assert!(stays_awake(polling.wait(true, pending())));
    }
}
