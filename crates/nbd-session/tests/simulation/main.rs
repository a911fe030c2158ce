//! The session under seeded schedules of everything that happens to links, in virtual time.
//!
//! `SIM_SEEDS=n` runs n schedules (1,000 by default); `SIM_SEED=n` replays the one with that seed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agenda;
mod connection;
mod event;
mod faults;
mod keeper;
mod machine;
mod outputs;
mod page;
mod random;
mod restart;
mod statistics;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use statistics::Statistics;
use world::World;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {value}")),
    )
}

#[test]
fn whatever_happens_to_links_requests_are_answered_once_and_right() {
    if let Some(seed) = number("SIM_SEED") {
        print!("{}", World::new(seed).run());
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(1_000);
    let total = run_all(seeds);
    print!("in {seeds} schedules:\n{total}");
    if seeds >= 1_000 {
        total.assert_complete();
    }
}

/// Runs the schedules on all processors.
fn run_all(seeds: u64) -> Statistics {
    let next = AtomicU64::new(0);
    let worker = || {
        let mut total = Statistics::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return total;
            }
            match catch_unwind(AssertUnwindSafe(|| World::new(seed).run())) {
                Ok(statistics) => total.add(&statistics),
                Err(panic) => {
                    eprintln!("the schedule of seed {seed} failed; replay it with SIM_SEED={seed}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .fold(Statistics::default(), |mut total, worker| {
                total.add(&worker.join().expect("every schedule holds"));
                total
            })
    })
}
