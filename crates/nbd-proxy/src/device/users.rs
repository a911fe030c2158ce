//! Who uses a device, and waiting until they have gone.

use std::{path::Path, time::Duration};

use nbd_kernel::block::Disk;
use tokio::time::{Instant, sleep};

use super::{DeviceError, blocking};
use crate::privileged;

/// A look at a device that has just come or changed (udev's, for one) is over sooner than this.
const PASSING: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);

/// Who uses a disk or a partition of it, each in a few words.
pub(super) async fn of_disk(disk: &Disk) -> Vec<String> {
    let disk = disk.clone();
    named(move || privileged::users_of_disk(&disk)).await
}

/// Who uses the file mounted at `path`, each in a few words.
pub(super) async fn of_mounted_file(path: &Path) -> Vec<String> {
    let path = path.to_path_buf();
    named(move || privileged::users_of_file(path)).await
}

async fn named(find: impl FnOnce() -> Vec<String> + Send + 'static) -> Vec<String> {
    let found = blocking::run(find).await;
    let found = found.unwrap_or_else(|error| vec![format!("unknown: {error}")]);
    found.iter().map(|user| printable(user)).collect()
}

/// Processes choose their names.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(nbd::printable).collect()
}

/// Fails when somebody uses the device for more than a moment.
pub(super) async fn ensure_none<F>(device: &str, users: impl Fn() -> F) -> Result<(), DeviceError>
where
    F: Future<Output = Vec<String>>,
{
    if users().await.is_empty() {
        return Ok(());
    }
    sleep(PASSING).await;
    let users = users().await;
    if users.is_empty() {
        return Ok(());
    }
    Err(DeviceError::InUse {
        device: device.into(),
        users,
    })
}

/// Whether `condition` came true within `limit`.
pub(super) async fn poll_until(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
