//! `nbd-proxy` itself, counting how often it allocates memory: at its end it says `PID allocated N times`. What
//! `bench/questions/cost.py` shows is one such run less another with fewer requests.

use std::{alloc::System, process::ExitCode};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    let code = nbd_proxy::main();
    let stats = COUNTING.stats();
    let count = stats.allocations + stats.reallocations;
    eprintln!("{} allocated {count} times", std::process::id());
    code
}
