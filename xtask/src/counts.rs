//! How many tests ran, read from the closing lines of the test runners.

use std::fmt;
use std::ops::AddAssign;

use crate::command::Failure;

/// Tests by outcome.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds what one line of a runner's output says, if it is a closing line of
    /// cargo (`test result: ok. 3 passed; …`), of `node --test` (`ℹ pass 3`) or of
    /// pytest (`==== 3 passed, 1 skipped in 0.1s ====`).
    pub(crate) fn read_line(&mut self, line: &str) {
        let line = line.trim();
        if let Some((name, number)) = line
            .strip_prefix("ℹ ")
            .and_then(|rest| rest.split_once(' '))
        {
            self.add(number, name);
        } else if line.starts_with("test result: ") || is_pytest_end(line) {
            let words: Vec<&str> = line
                .split(|c: char| c.is_whitespace() || ",;.".contains(c))
                .filter(|word| !word.is_empty())
                .collect();
            for pair in words.windows(2) {
                self.add(pair[0], pair[1]);
            }
        }
    }

    /// A runner that found nothing to run has proven nothing.
    pub(crate) fn require_some(self, runner: &str) -> Result<Self, Failure> {
        match self.passed {
            0 => Err(format!("`{runner}` ran no test")),
            _ => Ok(self),
        }
    }

    fn add(&mut self, number: &str, outcome: &str) {
        let Ok(number) = number.parse::<u64>() else {
            return;
        };
        match outcome {
            "passed" | "pass" => self.passed += number,
            "failed" | "fail" | "error" | "errors" | "cancelled" => self.failed += number,
            "skipped" | "ignored" | "todo" | "xfailed" => self.skipped += number,
            _ => {}
        }
    }
}

fn is_pytest_end(line: &str) -> bool {
    let bare = line.trim_matches('=').trim();
    bare.contains(" in ")
        && bare.starts_with(|c: char| c.is_ascii_digit())
        && line.starts_with("==")
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    fn read(text: &str) -> (u64, u64, u64) {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.read_line(line));
        (counts.passed, counts.failed, counts.skipped)
    }

    #[test]
    fn each_runner_is_understood() {
        let cargo = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(read(cargo), (3, 0, 1));
        let node = "ℹ tests 4\nℹ suites 0\nℹ pass 2\nℹ fail 1\nℹ cancelled 0\nℹ skipped 1\nℹ todo 0\nℹ duration_ms 9.1";
        assert_eq!(read(node), (2, 1, 1));
        let pytest = "==== 1 failed, 6 passed, 2 skipped, 1 deselected in 0.12s ====";
        assert_eq!(read(pytest), (6, 1, 2));
    }

    #[test]
    fn a_runner_that_runs_nothing_has_failed() {
        let mut counts = Counts::default();
        counts.read_line("test result: ok. 0 passed; 0 failed; 0 ignored; 7 filtered out");
        assert!(counts.require_some("cargo test").is_err());
        counts.read_line("test result: ok. 1 passed; 0 failed; 0 ignored; 6 filtered out");
        assert!(counts.require_some("cargo test").is_ok());
    }

    #[test]
    fn other_lines_say_nothing() {
        assert_eq!(
            read("5 passed\nℹ a note\n== 3 passed the door =="),
            (0, 0, 0)
        );
    }
}
