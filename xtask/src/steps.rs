//! The steps of `cargo xtask test`, and the summary at the end.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::command::{Failure, line, output, root, run, run_tests, target_directory};
use crate::counts::Counts;
use crate::unsafe_code;
use crate::{manual, setup};

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 20;

/// How long one test runner may take, in `timeout`'s units; several times what it takes.
const RUNNER_LIMIT: &str = "40m";

/// Schedules that the session is simulated under.
const SIMULATION_SEEDS: &str = "10000";

/// One step: what it is called, what it is for, what it does.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    action: fn() -> Result<Counts, Failure>,
}

/// Every step, in the order of `cargo xtask test`: what fails soonest comes first.
pub(crate) const STEPS: [Step; 15] = [
    step(
        "setup",
        "Debian packages (as root), npm and Python packages, cargo-deny, cargo-fuzz",
        || check(setup::everything),
    ),
    step("format", "rustfmt, Biome", || check(format)),
    step(
        "lint",
        "where unsafe is, clippy with and without default features, tsc",
        || check(lint),
    ),
    step("doc", "rustdoc without warnings", || check(doc)),
    step(
        "deny",
        "licences, sources and duplicates of dependencies",
        || check(deny),
    ),
    step("unit", "the workspace's own tests", unit),
    step(
        "simulation",
        "the session under thousands of seeded schedules",
        simulation,
    ),
    step("web", "nbd.js and the page's parts under Node.js", web),
    step(
        "peers",
        "libnbd, QEMU, nbdkit, nbd-server, fio, a program like bmcweb",
        peers,
    ),
    step(
        "package",
        "manual pages, completions, the dashboard, the HTTP API's description, the Debian package, the container",
        package,
    ),
    step(
        "browser",
        "Chromium, Firefox and WebKit end to end",
        browser,
    ),
    step(
        "resume",
        "sessions that outlive their links, over a line that goes bad",
        resume,
    ),
    step(
        "guest",
        "the kernel's NBD driver, and the package under systemd, in a guest",
        guest,
    ),
    step(
        "count",
        "instructions that protocol, volume and cache take for a request",
        || check(count),
    ),
    step("fuzz", "every fuzz target, briefly", || check(fuzz)),
];

const fn step(
    name: &'static str,
    about: &'static str,
    action: fn() -> Result<Counts, Failure>,
) -> Step {
    Step {
        name,
        about,
        action,
    }
}

/// A step without tests to count.
fn check(action: fn() -> Result<(), Failure>) -> Result<Counts, Failure> {
    action().map(|()| Counts::default())
}

/// Runs steps until one fails, then says what took how long.
pub(crate) fn run_all(steps: &[Step]) -> ExitCode {
    let mut report = Vec::new();
    let mut total = Counts::default();
    let mut failure = None;
    for step in steps {
        println!("\n==> {}: {}", step.name, step.about);
        let start = Instant::now();
        let result = (step.action)().and_then(none_skipped_in_ci);
        report.push((step.name, start.elapsed()));
        match result {
            Ok(counts) => total += counts,
            Err(reason) => {
                failure = Some(reason);
                break;
            }
        }
    }
    summarise(&report, steps.len(), failure.as_deref(), total)
}

fn none_skipped_in_ci(counts: Counts) -> Result<Counts, Failure> {
    match (counts.skipped, std::env::var("CI").as_deref()) {
        (1.., Ok("true")) => Err(format!(
            "{} tests were skipped, and CI=true allows none",
            counts.skipped
        )),
        _ => Ok(counts),
    }
}

fn summarise(
    report: &[(&str, Duration)],
    planned: usize,
    failure: Option<&str>,
    total: Counts,
) -> ExitCode {
    println!();
    for (name, time) in report {
        println!("{name:<11}{:>5} s", time.as_secs());
    }
    let Some(reason) = failure else {
        println!("tests: {total}\nsteps: {} passed, 0 failed", report.len());
        return ExitCode::SUCCESS;
    };
    let failed = report.last().map_or("nothing", |(name, _)| name);
    println!("{failed} FAILED: {reason}");
    println!(
        "steps: {} passed, 1 failed, {} not run",
        report.len() - 1,
        planned - report.len()
    );
    ExitCode::FAILURE
}

fn format() -> Result<(), Failure> {
    run(&mut line("cargo fmt --all --check"))?;
    run(&mut line("npx --no-install biome ci"))
}

fn lint() -> Result<(), Failure> {
    unsafe_code::check()?;
    let clippy = "cargo clippy --quiet --workspace --all-targets --all-features";
    run(line(clippy).args(["--", "-Dwarnings"]))?;
    let plain_filter = "cargo clippy --quiet -p nbd-proxy --all-targets --no-default-features";
    run(line(plain_filter).args(["--", "-Dwarnings"]))?;
    run(&mut line("npm run --silent typecheck"))
}

fn doc() -> Result<(), Failure> {
    run(line("cargo doc --quiet --workspace --no-deps").env("RUSTDOCFLAGS", "-Dwarnings"))
}

fn deny() -> Result<(), Failure> {
    run(&mut line("cargo deny check bans licenses sources"))
}

fn unit() -> Result<Counts, Failure> {
    run_tests(&mut line("cargo test --quiet --workspace"))
}

fn simulation() -> Result<Counts, Failure> {
    run_tests(
        line("cargo test --quiet --release -p nbd-session").env("SIM_SEEDS", SIMULATION_SEEDS),
    )
}

fn web() -> Result<Counts, Failure> {
    run_tests(&mut node_test("web/tests")?)
}

fn peers() -> Result<Counts, Failure> {
    let program = build_program()?;
    // Debian's own interpreter: it is the one that has python3-libnbd.
    run_tests(limited("/usr/bin/python3 -m pytest -rs tests/peers").env("NBD_PROXY", program))
}

fn package() -> Result<Counts, Failure> {
    let program = build_program()?;
    let manual = manual::write()?;
    let mut counts = run_tests(
        limited("/usr/bin/python3 -m pytest -rs tests/package")
            .env("NBD_PROXY", &program)
            .env("MANUAL", manual),
    )?;
    let python = setup::python_environment().join("bin/python");
    counts += run_tests(
        limited(&format!("{} -m pytest -rs tests/api", python.display())).env("NBD_PROXY", program),
    )?;
    Ok(counts)
}

fn browser() -> Result<Counts, Failure> {
    let program = build_program()?;
    run_tests(node_test("tests/browser")?.env("NBD_PROXY", program))
}

fn resume() -> Result<Counts, Failure> {
    let program = build_program()?;
    run_tests(node_test("tests/resume")?.env("NBD_PROXY", program))
}

fn guest() -> Result<Counts, Failure> {
    let program = build_program()?;
    let manual = manual::write()?;
    run_tests(
        node_test("tests/guest")?
            .env("NBD_PROXY", program)
            .env("MANUAL", manual),
    )
}

fn count() -> Result<(), Failure> {
    run(&mut line("/usr/bin/python3 bench/instructions.py"))
}

fn fuzz() -> Result<(), Failure> {
    let fuzzing = |words: &str| {
        let mut command = line(words);
        // The sanitizers are unstable options of the compiler.
        command.env("RUSTC_BOOTSTRAP", "1");
        command
    };
    run(&mut fuzzing("cargo fuzz build"))?;
    let targets = output(&mut fuzzing("cargo fuzz list"));
    if targets.is_empty() {
        return Err("`cargo fuzz list` names no target".into());
    }
    for target in targets.lines() {
        // libFuzzer writes what it finds into the first folder, and only reads the second.
        let found = target_directory().join("fuzz-corpus").join(target);
        std::fs::create_dir_all(&found).map_err(|error| format!("{}: {error}", found.display()))?;
        run(fuzzing("cargo fuzz run")
            .arg(target)
            .arg(found)
            .arg(root().join("fuzz/corpus").join(target))
            .args(["--", &format!("-max_total_time={FUZZ_SECONDS}")]))?;
    }
    Ok(())
}

/// The program that the tests outside cargo start: a debug build, whose checks are on.
fn build_program() -> Result<PathBuf, Failure> {
    run(&mut line("cargo build --quiet -p nbd-proxy"))?;
    Ok(target_directory().join("debug/nbd-proxy"))
}

/// A test runner that is ended should it hang.
fn limited(words: &str) -> Command {
    line(&format!(
        "timeout --foreground --kill-after=10 {RUNNER_LIMIT} {words}"
    ))
}

/// One test file at a time: each of them starts browsers or a guest.
fn node_test(folder: &str) -> Result<Command, Failure> {
    let entries = std::fs::read_dir(root().join(folder));
    let entries = entries.map_err(|error| format!("{folder}: {error}"))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".test."))
        .collect();
    // Without a name Node.js would run whatever it finds.
    if files.is_empty() {
        return Err(format!("{folder} has no tests"));
    }
    files.sort();
    let mut node =
        limited("node --test --test-reporter=spec --test-concurrency=1 --test-force-exit");
    node.args(files);
    Ok(node)
}
