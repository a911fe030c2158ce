//! The end of a task that may be in the midst of anything.

use std::time::Duration;

use tokio::{task::AbortHandle, time::sleep};

const POLL: Duration = Duration::from_millis(1);

/// Ends a task, and waits until what it had is dropped: sockets, descriptors, requests.
pub(super) async fn end(task: &AbortHandle) {
    task.abort();
    while !task.is_finished() {
        sleep(POLL).await;
    }
}
