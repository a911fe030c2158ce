//! What a person sees meanwhile: a line that moves on a terminal, a line for each change elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use nbd_session::{DevicePhase, ImageInfo, control::DeviceState};

use crate::{report, units};

/// Over how long a rate is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// What was served.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    /// Of the image.
    pub(super) bytes: u64,
    /// Of any kind.
    pub(super) requests: u64,
}

/// Counts and tells.
pub(super) struct Progress {
    /// On a terminal.
    line: Option<ProgressBar>,
    image: String,
    state: String,
    sum: Sum,
    window: (Instant, u64),
    rate: u64,
}

impl Progress {
    pub(super) fn new(image: &ImageInfo) -> Self {
        let line = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        let image = format!("{} ({})", image.name, units::bytes(image.size));
        let mut progress = Self {
            line,
            image,
            state: String::new(),
            sum: Sum::default(),
            window: (Instant::now(), 0),
            rate: 0,
        };
        progress.set_state("connecting".to_owned());
        progress
    }

    /// The server said what has become of the image.
    pub(super) fn set_device(&mut self, state: &DeviceState) {
        let device = state.device.as_deref().unwrap_or("the device");
        self.set_state(match state.phase {
            DevicePhase::Attaching => "being attached".to_owned(),
            DevicePhase::Attached => format!("attached as {device}"),
            DevicePhase::Held => format!("waiting for its link, as {device}"),
            DevicePhase::Draining => format!("{device} is being detached"),
        });
    }

    /// The link is lost, with what happened to it; it is being looked for for so long.
    pub(super) fn set_lost(&mut self, cause: &str, left: Duration) {
        self.set_state(format!("{cause}; {}", reconnecting(left)));
    }

    /// It is still being looked for.
    pub(super) fn count_down(&mut self, left: Duration) {
        if self.line.is_some() {
            self.state = reconnecting(left);
            self.show();
        }
    }

    fn set_state(&mut self, state: String) {
        if state == self.state {
            return;
        }
        self.state = state;
        match &self.line {
            Some(_) => self.show(),
            None => report::information(format!("{}: {}", self.image, self.state)),
        }
    }

    /// A request was answered, with so many bytes of the image.
    pub(super) fn count(&mut self, bytes: u64) {
        self.sum.bytes += bytes;
        self.sum.requests += 1;
    }

    /// Something that a person should know, once.
    pub(super) fn warn(&self, message: &str) {
        match &self.line {
            Some(line) => line.suspend(|| report::warning(message)),
            None => report::warning(message),
        }
    }

    /// To be called a few times a second.
    pub(super) fn tick(&mut self) {
        let (since, bytes) = self.window;
        let elapsed = since.elapsed();
        if elapsed >= WINDOW {
            let milliseconds = u64::try_from(elapsed.as_millis())
                .unwrap_or(u64::MAX)
                .max(1);
            self.rate = (self.sum.bytes - bytes).saturating_mul(1000) / milliseconds;
            self.window = (Instant::now(), self.sum.bytes);
        }
        self.show();
    }

    fn show(&self) {
        if let Some(line) = &self.line {
            let (read, rate) = (units::bytes(self.sum.bytes), units::bytes(self.rate));
            line.set_message(format!(
                "{}: {}, {read} read, {rate}/s",
                self.image, self.state
            ));
            line.tick();
        }
    }

    /// What was served so far.
    pub(super) fn sum(&self) -> Sum {
        self.sum
    }
}

fn reconnecting(left: Duration) -> String {
    format!("reconnecting, {} s left", left.as_secs())
}

/// Takes the line away, however it ends.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
