//! Work that may wait for the device's own answers, or for ever: beside the task that answers. Nobody waits for it when
//! the program ends.

use std::{io, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};

/// Does `work` on a thread where it may block. A caller that goes away leaves it running; its result is dropped there.
pub(super) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}

/// The same with work that can fail, and no longer than `limit`; then it goes on alone.
pub(super) async fn run_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    timeout(limit, run(work))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?
}

/// Begins `work` on a thread of its own, for a destructor: it can't wait, and may run outside the runtime.
pub(super) fn begin(work: impl FnOnce() + Send + 'static) {
    let _ = std::thread::Builder::new()
        .name("device".into())
        .spawn(work);
}
