//! SIGINT, SIGTERM and SIGHUP: somebody wants us to stop, or our terminal is gone.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// These signals, from when it was made: one that came before it is asked for is not lost.
pub(crate) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.hangup.recv() => "SIGHUP",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// SIGUSR1, from when it was made: another process of ours is about to take our place.
#[cfg(feature = "serve")]
pub(crate) struct Succession(Signal);

#[cfg(feature = "serve")]
impl Succession {
    pub(crate) const NAME: &str = "SIGUSR1";

    pub(crate) fn new() -> anyhow::Result<Self> {
        let listening = signal(SignalKind::user_defined1());
        Ok(Self(listening.context("can't listen for signals")?))
    }

    /// Waits for it.
    pub(crate) async fn begins(&mut self) {
        self.0.recv().await;
    }
}
