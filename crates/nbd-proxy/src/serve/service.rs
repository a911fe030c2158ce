//! What a service manager is told of us and gives to us: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.
//! Without one nothing of it happens.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::report;

/// How many beats there are in the time after which the manager takes us for dead.
const BEATS: u32 = 3;

/// The listening sockets that we were started with. Takes them out of the environment, so it comes before other threads.
pub(super) fn passed_listeners() -> anyhow::Result<Vec<TcpListener>> {
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::with_capacity(passed.len());
    for index in 0..passed.len() {
        let listener = passed
            .take_tcp_listener(index)
            .context("a socket that was passed on is not one that listens on TCP; the socket unit needs ListenStream=PORT")?;
        listeners.extend(listener);
    }
    Ok(listeners)
}

/// The server answers.
pub(super) fn ready(addresses: &[SocketAddr]) {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    let status = format!("Listening on {}", addresses.join(", "));
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// It ends its sessions.
pub(super) fn stopping(signal: &str) {
    let status = format!("{signal}: ending sessions");
    tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

/// Shows that the runtime still runs tasks, as often as the manager wants to see it.
pub(super) async fn keep_alive() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    let mut beats = tokio::time::interval(limit / BEATS);
    loop {
        beats.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        report::warning(format_args!("can't tell the service manager: {error}"));
    }
}
