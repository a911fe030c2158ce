//! Running programs from the repository's root, with what they print shown as it comes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::counts::Counts;

/// Why a step failed, in words.
pub(crate) type Failure = String;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
}

/// Where cargo builds: `CARGO_TARGET_DIR`, or `target` in the repository.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A command that starts in the repository's root.
pub(crate) fn command(
    program: &str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// `command` of a line whose words have no spaces in them.
pub(crate) fn line(words: &str) -> Command {
    let mut words = words.split_ascii_whitespace();
    command(words.next().expect("a program's name"), words)
}

/// Runs a command to its end; anything but exit status 0 is a failure.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    announce(command);
    let status = command
        .status()
        .map_err(|error| cannot_start(command, &error))?;
    ended(command, status)
}

/// Runs a test runner, and counts the tests from what it prints on standard output. Where none passed it is a failure.
pub(crate) fn run_tests(command: &mut Command) -> Result<Counts, Failure> {
    announce(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let mut counts = Counts::default();
    let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    for line in output.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.read_line(&line);
    }
    let status = child
        .wait()
        .map_err(|error| cannot_start(command, &error))?;
    ended(command, status)?;
    counts.require_some(&shown(command))
}

/// What a command prints on standard output, or nothing when it can't be run or fails.
pub(crate) fn output(command: &mut Command) -> String {
    match command.stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => String::new(),
    }
}

fn announce(command: &Command) {
    println!("$ {}", shown(command));
    // A child's output must not overtake our own.
    let _ = std::io::stdout().flush();
}

fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!(
            "{}={}",
            name.to_string_lossy(),
            value?.to_string_lossy()
        ))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables
        .chain(words.map(|word| word.to_string_lossy().into_owned()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    format!(
        "{} can't be run: {error}",
        command.get_program().to_string_lossy()
    )
}

fn ended(command: &Command, status: std::process::ExitStatus) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    Err(format!("`{}` ended with {status}", shown(command)))
}
