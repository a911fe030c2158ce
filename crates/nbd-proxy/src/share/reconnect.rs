//! Looking for the way back to a session whose link was lost.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    address::Address,
    connection::{self, Connection, PATIENCE},
    exchange::{Loss, TICK},
    image::Image,
    progress::Progress,
};
use crate::signals::Signals;

/// How long the first pause between two attempts is, at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How long the others become, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A session without a link.
pub(super) struct Search {
    /// Until when the server holds it.
    until: Instant,
    backoff: Backoff,
}

/// What came of an attempt to find back.
pub(super) enum Found {
    /// A connection, and the image opened anew.
    Connection(Box<Connection>, Arc<Image>),
    /// Nothing in time, or nothing that would do; with a sentence why.
    Nothing(String),
}

impl Search {
    /// From the moment of a loss on.
    pub(super) fn new(loss: &Loss) -> Self {
        Self {
            until: Instant::now() + loss.hold,
            backoff: Backoff::new(),
        }
    }

    /// Tries until a connection is there, or the session is given up.
    pub(super) async fn run(
        &mut self,
        address: &mut Address,
        session: &str,
        image: &Image,
        (progress, signals): (&mut Progress, &mut Signals),
    ) -> Found {
        let mut cause = String::new();
        while !self.left().is_zero() {
            let (pause, until) = (self.backoff.next().min(self.left()), self.until);
            let attempt = async {
                sleep(pause).await;
                attempt(address, session, image, left(until).min(PATIENCE)).await
            };
            tokio::select! {
                result = attempt => match result {
                    Ok(Some(Attempt { connection, image })) => {
                        return Found::Connection(Box::new(connection), Arc::new(image));
                    }
                    Ok(None) => {
                        let name = &image.info().name;
                        return Found::Nothing(format!("{name} was changed since it was shared; share it anew"));
                    }
                    Err(error) => cause = format!(": {error:#}"),
                },
                () = count_down(until, progress) => {}
                _ = signals.next() => {
                    let seconds = self.left().as_secs();
                    return Found::Nothing(format!(
                        "stopped without a link; the server waits for another {seconds} s"
                    ));
                }
            }
        }
        Found::Nothing(format!(
            "gave up: the server holds the session no longer{cause}"
        ))
    }

    /// How long the server still holds it.
    pub(super) fn left(&self) -> Duration {
        left(self.until)
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

struct Attempt {
    connection: Connection,
    image: Image,
}

/// None: the image was changed.
async fn attempt(
    address: &mut Address,
    session: &str,
    image: &Image,
    patience: Duration,
) -> anyhow::Result<Option<Attempt>> {
    let Some(image) = image.reopen()? else {
        return Ok(None);
    };
    let connection = connection::open(address, session, false, patience).await?;
    Ok(Some(Attempt { connection, image }))
}

/// Shows how long is left; ends when nothing is.
async fn count_down(until: Instant, progress: &mut Progress) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < until {
        ticks.tick().await;
        progress.count_down(left(until));
    }
}

/// Pauses that double, each shortened by chance to half of it at most, so that many who were cut off at once do not
/// come back at once.
struct Backoff {
    longest: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self {
            longest: FIRST_PAUSE,
        }
    }

    fn next(&mut self) -> Duration {
        let half = self.longest / 2;
        let chance = RandomState::new().hash_one(()) % 1000;
        self.longest = (self.longest * 2).min(LONGEST_PAUSE);
        half + half.mul_f64(chance as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let mut backoff = Backoff::new();
        for longest in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            let pause = backoff.next().as_millis();
            assert!((longest / 2..=longest).contains(&pause), "{pause}");
        }
    }
}
