//! Checks passwords on a thread of its own: one at a time, and behind everybody else, so that those who guess take no
//! time from sessions.

use std::{io, sync::mpsc, thread};

use rustix::process::{Pid, setpriority_process};
use tokio::sync::oneshot;

use crate::{accounts::password, report};

/// How many checks may wait.
const QUEUE: usize = 16;
/// How far the thread stands back (`nice(1)`).
const NICE: i32 = 10;

/// The thread's end for others.
#[derive(Debug)]
pub(super) struct Hasher(mpsc::SyncSender<Job>);

#[derive(Debug)]
struct Job {
    password: String,
    hash: String,
    answer: oneshot::Sender<bool>,
}

/// Too many checks wait already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy;

impl Hasher {
    /// Starts the thread. It ends with this value.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, jobs) = mpsc::sync_channel(QUEUE);
        thread::Builder::new()
            .name("passwords".to_owned())
            .spawn(move || work(&jobs))?;
        Ok(Self(sender))
    }

    /// Whether `hash` is of `password`.
    pub(super) async fn check(&self, password: String, hash: String) -> Result<bool, Busy> {
        let (answer, answered) = oneshot::channel();
        let job = Job {
            password,
            hash,
            answer,
        };
        self.0.try_send(job).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }
}

fn work(jobs: &mpsc::Receiver<Job>) {
    // On Linux a priority is a thread's own (setpriority(2)).
    if let Err(error) = setpriority_process(None::<Pid>, NICE) {
        report::warning(format_args!(
            "passwords are checked at full priority: {error}"
        ));
    }
    for job in jobs {
        if !job.answer.is_closed() {
            let _ = job.answer.send(password::matches(&job.password, &job.hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_checks_than_may_wait_are_refused_and_the_others_answered() {
        let hasher = std::sync::Arc::new(Hasher::start().unwrap());
        let checks: Vec<_> = (0..4 * QUEUE)
            .map(|_| {
                let hasher = std::sync::Arc::clone(&hasher);
                tokio::spawn(async move {
                    let wrong = "wrong".to_owned();
                    hasher.check(wrong, password::DUMMY.to_owned()).await
                })
            })
            .collect();
        let mut refused = 0;
        for check in checks {
            match check.await.unwrap() {
                Ok(matches) => assert!(!matches),
                Err(Busy) => refused += 1,
            }
        }
        assert!((1..4 * QUEUE - 1).contains(&refused), "{refused}");
    }
}
