//! One hook of a configuration at a time: a helper whose server was killed finishes its `stop`, and the next one waits
//! for that.

use std::{fs::File, path::Path, time::Duration};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::time::{Instant, sleep};

const INTERVAL: Duration = Duration::from_millis(20);

/// Takes the turn, which lasts until what is returned is dropped. `state` is the file that says that `stop` is owed: it
/// is there from before `start` until `stop` has run, and each session has its own. A server may have been taken over,
/// so none keeps us waiting for longer than `limit`.
pub(super) async fn take(state: &Path, limit: Duration) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(state, flags, Mode::empty()).ok()?);
    let deadline = Instant::now() + limit;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return None;
        }
        sleep(INTERVAL).await;
    }
    Some(file)
}
