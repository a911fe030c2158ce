//! The kernel's NBD device, attached to one end of a socket pair whose other end we serve.

mod attachment;
mod leftovers;
#[cfg(feature = "serve")]
mod reclaim;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd::server::Transmission;
use nbd_kernel::block::Disk;
use tokio::{net::UnixStream, sync::mpsc, task::AbortHandle, time::sleep};

use self::attachment::{Attachment, Plan};
#[cfg(feature = "serve")]
pub(crate) use self::leftovers::is_leftover;
#[cfg(feature = "serve")]
pub(crate) use self::reclaim::{Left, Reclaimed, reclaim};
pub(crate) use self::{
    attachment::LOAD_REMEDY,
    leftovers::{cut_off, recover},
};
use super::{
    AttachRequest, Detached, DeviceError, DeviceEvent, blocking,
    budget::Inlet,
    client::{self, ClientEnd},
    users::{self, poll_until},
};
#[cfg(feature = "serve")]
use crate::device::tasks;
use crate::privileged;

/// What the kernel sees, in bytes.
const BLOCK_SIZE: u32 = 512;
/// After this long a detach that waits for us to read gets its socket closed instead.
const POLITE: Duration = Duration::from_secs(1);
/// A detach takes this long at most, and then a moment to see whether the device is free: bmcweb waits for us.
const DETACH_LIMIT: Duration = Duration::from_secs(5);
const FREE_LIMIT: Duration = Duration::from_millis(200);
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// An attached `/dev/nbdN`. Detached when dropped.
#[derive(Debug)]
pub(crate) struct KernelDevice {
    path: String,
    attachment: Attachment,
    serving: Serving,
}

impl KernelDevice {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) async fn users(&self) -> Vec<String> {
        users::of_disk(self.attachment.device().disk()).await
    }

    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        if !force {
            users::ensure_none(&self.path, || self.users()).await?;
        }
        self.serving.leaving.store(true, Ordering::Release);
        let serving = self.serving.task.clone();
        let impatience = tokio::spawn(async move {
            sleep(POLITE).await;
            serving.abort();
        });
        let disconnected = self.attachment.disconnect(DETACH_LIMIT).await;
        impatience.abort();
        self.serving.task.abort();
        disconnected.map_err(DeviceError::io(format!("detach {}", self.path)))?;
        if poll_until(FREE_LIMIT, || !self.attachment.is_ours()).await {
            return Ok(Detached::Free);
        }
        let users = self.users().await;
        Ok(Detached::Draining { users })
    }

    /// Whether it is there without us, for another process to take over.
    pub(crate) fn outlives_us(&self) -> bool {
        self.attachment.is_by_netlink()
    }

    /// Lets go of the device, which stays as it is: what is outstanding waits for another process. After this no
    /// answer reaches the kernel any more.
    #[cfg(feature = "serve")]
    pub(crate) async fn leave(&self) {
        self.serving.leaving.store(true, Ordering::Release);
        tasks::end(&self.serving.task).await;
        self.attachment.leave();
    }

    pub(crate) async fn drained(&self) {
        while self.attachment.is_ours() {
            sleep(DRAIN_POLL).await;
        }
    }
}

/// Attaches `/dev/nbdN`, or the first free one.
pub(crate) async fn attach(
    index: Option<u32>,
    request: AttachRequest,
) -> Result<KernelDevice, DeviceError> {
    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().map_err(DeviceError::io("create a socket pair"))?;
    // Dropped after `serving`: a device that can't be attached must not be told to have failed, since `auto` goes on.
    let _open = theirs
        .try_clone()
        .map_err(DeviceError::io("keep a socket pair open"))?;
    let serving = Serving::start(into_tokio(ours)?, &request);
    let plan = Plan::new(index, &request);
    let attachment = blocking::run(move || plan.carry_out(&theirs.into()))
        .await
        .map_err(DeviceError::io("start a thread"))??;
    let path = attachment.device().disk().path();
    let path = path.to_string_lossy().into_owned();
    first_read(attachment.device().disk().clone()).await?;
    Ok(KernelDevice {
        path,
        attachment,
        serving,
    })
}

/// Opening the device has the kernel look for partitions; afterwards they are there, and the link has answered.
async fn first_read(disk: Disk) -> Result<(), DeviceError> {
    let action = format!("read {}", disk.path().display());
    let read = move || privileged::first_read(&disk).map_err(io::Error::other);
    blocking::run(read)
        .await
        .and_then(|result| result)
        .map_err(DeviceError::io(action))
}

/// The task that answers the kernel. Ends when dropped.
#[derive(Debug)]
struct Serving {
    task: AbortHandle,
    /// We are detaching: what the kernel says to that is no news.
    leaving: Arc<AtomicBool>,
}

impl Serving {
    fn start(stream: UnixStream, request: &AttachRequest) -> Self {
        let export = client::export(&request.name, &request.geometry);
        let transmission = Transmission::new(&export, nbd::Negotiated::default());
        let inlet = Inlet::new(request.requests.clone(), request.memory);
        let events = request.events.clone();
        let leaving = Arc::new(AtomicBool::new(false));
        let expected = leaving.clone();
        let task = tokio::spawn(async move {
            let end = client::serve_transmission(stream, transmission, inlet).await;
            if !expected.load(Ordering::Acquire) {
                report_end(end, &events);
            }
        });
        Serving {
            task: task.abort_handle(),
            leaving,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn into_tokio(stream: std::os::unix::net::UnixStream) -> Result<UnixStream, DeviceError> {
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .map_err(DeviceError::io("use a socket pair"))
}

fn report_end(
    end: Result<ClientEnd, client::ClientError>,
    events: &mpsc::UnboundedSender<DeviceEvent>,
) {
    let event = match end {
        Ok(ClientEnd::Disconnect) => DeviceEvent::Disconnected,
        Ok(ClientEnd::Closed) => {
            DeviceEvent::Failed("the kernel closed its NBD connection (dmesg says why)".into())
        }
        Err(error) => DeviceEvent::Failed(format!("the kernel's NBD connection failed: {error}")),
    };
    let _ = events.send(event);
}

#[cfg(test)]
mod tests;
