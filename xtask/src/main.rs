//! The project's own commands, run as `cargo xtask COMMAND`.

mod command;
mod counts;
mod debian;
mod manual;
mod setup;
mod steps;
mod unsafe_code;

use std::{path::PathBuf, process::ExitCode};

use command::Failure;
use steps::{STEPS, Step};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => steps::run_all(&STEPS[..1]),
        ["test"] => steps::run_all(&STEPS),
        ["test", names @ ..] => match named(names) {
            Ok(chosen) => steps::run_all(&chosen),
            Err(unknown) => usage(&format!("there is no step {unknown:?}")),
        },
        ["man"] => report(manual::write()),
        ["deb"] => report(manual::package()),
        ["help" | "-h" | "--help"] => {
            print!("{}", help());
            ExitCode::SUCCESS
        }
        _ => usage("which command?"),
    }
}

/// Says where something was written.
fn report(result: Result<PathBuf, Failure>) -> ExitCode {
    match result {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn named(names: &[&str]) -> Result<Vec<Step>, String> {
    let find = |name: &&str| STEPS.iter().find(|step| step.name == *name).copied();
    names
        .iter()
        .map(|name| find(name).ok_or_else(|| (*name).to_owned()))
        .collect()
}

fn usage(problem: &str) -> ExitCode {
    eprint!("xtask: {problem}\n\n{}", help());
    ExitCode::from(2)
}

fn help() -> String {
    let mut text = String::from(
        "cargo xtask test           set up, then every step below in this order\n\
         cargo xtask test STEP...   only these steps\n\
         cargo xtask setup          install what the tests need\n\
         cargo xtask man            write manual pages and completions for shells\n\
         cargo xtask deb            build a Debian package\n\nSteps:\n",
    );
    for step in &STEPS {
        text += &format!("  {:<11}{}\n", step.name, step.about);
    }
    text
}
