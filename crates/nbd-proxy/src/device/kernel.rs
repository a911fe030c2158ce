//! The kernel's NBD device, attached to one end of a socket pair whose other end we serve.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd::server::Transmission;
use nbd_kernel::{
    block::QueueTuning,
    nbd::{
        Attached, ConnectOptions, Device, IoctlAttachment, IoctlOptions, Netlink, driver_loaded,
    },
    users::{self, User},
};
use tokio::{
    net::UnixStream,
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep},
};

use super::{
    AttachMode, AttachRequest, Detached, DeviceError, DeviceEvent, blocking,
    client::{self, ClientEnd},
};

/// What the kernel sees, in bytes.
const BLOCK_SIZE: u32 = 512;
/// Larger requests and a longer readahead than the kernel's 128 KiB make up for the distance; 2 s is how soon a reader
/// goes on after a reconfiguration (the price: a line "Possible stuck request" in the log at that pace while it waits).
const TUNING: QueueTuning = QueueTuning {
    read_ahead_kb: Some(1024),
    max_sectors_kb: Some(1024),
    io_timeout: Some(Duration::from_secs(2)),
};
/// After this long a detach that waits for us to read gets its socket closed instead.
const POLITE: Duration = Duration::from_secs(1);
/// A detach takes this long at most, and then a moment to see whether the device is free.
const DETACH_LIMIT: Duration = Duration::from_secs(3);
const FREE_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
const DRAIN_POLL: Duration = Duration::from_millis(250);
/// A look at a device that has just come or changed (udev's, for one) is over sooner than this.
const PASSING: Duration = Duration::from_millis(300);

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
        users_of(self.attachment.0.device.clone()).await
    }

    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        if !force {
            let users = lasting_users(|| self.users()).await;
            if !users.is_empty() {
                return Err(DeviceError::InUse {
                    device: self.path.clone(),
                    users,
                });
            }
        }
        self.serving.leaving.store(true, Ordering::Release);
        let serving = self.serving.task.clone();
        let impatience = tokio::spawn(async move {
            sleep(POLITE).await;
            serving.abort();
        });
        let inner = self.attachment.0.clone();
        let disconnect = move || inner.disconnect().map_err(io::Error::other);
        let result = blocking::run_within(DETACH_LIMIT, disconnect).await;
        impatience.abort();
        self.serving.task.abort();
        result.map_err(DeviceError::io(format!("detach {}", self.path)))?;
        if self.freed_within(FREE_LIMIT).await {
            return Ok(Detached::Free);
        }
        Ok(Detached::Draining {
            users: self.users().await,
        })
    }

    pub(crate) async fn drained(&self) {
        while self.attachment.0.is_ours() {
            sleep(DRAIN_POLL).await;
        }
    }

    async fn freed_within(&self, limit: Duration) -> bool {
        poll_until(limit, || !self.attachment.0.is_ours()).await
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
    let serving = Serving::start(ours, &request)?;
    let plan = Plan::new(index, &request);
    let attachment = blocking::run(move || plan.carry_out(&theirs.into()))
        .await
        .map_err(DeviceError::io("start a thread"))??;
    let path = attachment.0.device.disk().path();
    let path = path.to_string_lossy().into_owned();
    first_read(path.clone()).await?;
    Ok(KernelDevice {
        path,
        attachment,
        serving,
    })
}

/// Opening the device has the kernel look for partitions; afterwards they are there, and the link has answered.
async fn first_read(path: String) -> Result<(), DeviceError> {
    let action = format!("read {path}");
    let read = move || File::open(&path)?.read_exact(&mut [0; BLOCK_SIZE as usize]);
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
    fn start(
        stream: std::os::unix::net::UnixStream,
        request: &AttachRequest,
    ) -> Result<Self, DeviceError> {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(DeviceError::io("use a socket pair"))?;
        let export = client::export(&request.name, &request.geometry);
        let transmission = Transmission::new(&export, nbd::Negotiated::default());
        let requests = request.requests.clone();
        let events = request.events.clone();
        let leaving = Arc::new(AtomicBool::new(false));
        let expected = leaving.clone();
        let task = tokio::spawn(async move {
            let end = client::serve_transmission(stream, transmission, requests).await;
            if !expected.load(Ordering::Acquire) {
                report_end(end, &events);
            }
        });
        Ok(Serving {
            task: task.abort_handle(),
            leaving,
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
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

/// What is to be attached, for the thread that does it.
struct Plan {
    index: Option<u32>,
    mode: AttachMode,
    size: u64,
    flags: u16,
    hold: Duration,
    session: String,
    backend: String,
}

impl Plan {
    fn new(index: Option<u32>, request: &AttachRequest) -> Self {
        Plan {
            index,
            mode: request.attach,
            size: request.geometry.size,
            flags: client::export(&request.name, &request.geometry)
                .flags
                .bits(),
            hold: request.hold,
            session: request.session.clone(),
            backend: backend_identifier(&request.name, &request.session),
        }
    }

    fn carry_out(&self, socket: &OwnedFd) -> Result<Attachment, DeviceError> {
        load_driver().map_err(|error| self.explain(error))?;
        let netlink = match self.mode {
            AttachMode::Ioctl => None,
            AttachMode::Automatic | AttachMode::Netlink => {
                Netlink::open().map_err(|error| self.explain(error))?
            }
        };
        let sign = sign_of_life(&self.session).ok();
        let (device, way) = match (netlink, self.mode) {
            (Some(netlink), _) => self.by_netlink(netlink, socket),
            (None, AttachMode::Netlink) => return Err(self.no_netlink()),
            (None, _) => self.by_ioctl(socket),
        }
        .map_err(|error| self.explain(error))?;
        let _ = device.disk().tune(&TUNING); // an older kernel lacks a knob: the device is slower, no less right
        let attached = device.attached();
        Ok(Attachment(Arc::new(Inner {
            device,
            way,
            attached,
            detached: AtomicBool::new(false),
            _sign: sign,
        })))
    }

    fn by_netlink(&self, netlink: Netlink, socket: &OwnedFd) -> nbd_kernel::Result<(Device, Way)> {
        let options = ConnectOptions {
            index: self.index,
            size: self.size,
            block_size: BLOCK_SIZE,
            server_flags: self.flags,
            dead_connection_timeout: self.hold,
            backend_identifier: &self.backend,
        };
        let index = netlink.connect(&options, socket.as_fd())?;
        Ok((Device::new(index), Way::Netlink(netlink)))
    }

    fn by_ioctl(&self, socket: &OwnedFd) -> nbd_kernel::Result<(Device, Way)> {
        let options = IoctlOptions {
            size: self.size,
            block_size: BLOCK_SIZE,
            server_flags: self.flags,
        };
        let candidates = match self.index {
            Some(index) => vec![index],
            None => Device::all().iter().map(Device::index).collect(),
        };
        let mut failure = nbd_kernel::Error::NoNbdDriver;
        for index in candidates {
            let socket = socket.try_clone().map_err(|source| nbd_kernel::Error::Io {
                action: "duplicate a socket".into(),
                source,
            })?;
            match IoctlAttachment::attach(index, &options, socket) {
                Ok(attachment) => return Ok((attachment.device().clone(), Way::Ioctl(attachment))),
                Err(error @ nbd_kernel::Error::Busy { .. }) => failure = error,
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }

    fn device_name(&self) -> String {
        self.index
            .map_or_else(|| "nbd:".into(), |index| format!("/dev/nbd{index}"))
    }

    fn no_netlink(&self) -> DeviceError {
        DeviceError::Unavailable {
            device: self.device_name(),
            cause:
                "the kernel has no NBD netlink family here (Linux 4.12, first network namespace)"
                    .into(),
            remedy: "leave \"attach\" out of the configuration, or set it to \"ioctl\"".into(),
        }
    }

    fn explain(&self, error: nbd_kernel::Error) -> DeviceError {
        use nbd_kernel::Error;
        let device = self.device_name();
        let cause = error.to_string();
        match error {
            Error::Busy { index, .. } => busy(index, cause),
            Error::NoDevice { .. } => {
                let remedy = "load the driver with more of them: modprobe nbd nbds_max=N".into();
                DeviceError::Unavailable {
                    device,
                    cause,
                    remedy,
                }
            }
            Error::NoNbdDriver => DeviceError::Unavailable {
                device,
                cause,
                remedy: LOAD_REMEDY.into(),
            },
            error if error.is_permission() => {
                let remedy = "run as root (CAP_SYS_ADMIN)".into();
                DeviceError::Unavailable {
                    device,
                    cause,
                    remedy,
                }
            }
            Error::Io { action, source } => DeviceError::Io { action, source },
            _ => DeviceError::Refused(cause),
        }
    }
}

/// What helps where the driver is missing.
pub(crate) const LOAD_REMEDY: &str = "load it (modprobe nbd) or take a kernel that has it (CONFIG_BLK_DEV_NBD); the device loop: needs neither";

fn busy(index: u32, cause: String) -> DeviceError {
    let device = Device::new(index);
    let users = std::iter::once(cause)
        .chain(users::of_disk(device.disk()).iter().map(User::to_string))
        .collect();
    DeviceError::InUse {
        device: format!("/dev/nbd{index}"),
        users,
    }
}

/// Loads the driver where it is missing and we may.
pub(crate) fn load_driver() -> nbd_kernel::Result<()> {
    if driver_loaded() {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        let _ = nbd_kernel::module::load("nbd"); // whether it helped shows next
    }
    if driver_loaded() {
        Ok(())
    } else {
        Err(nbd_kernel::Error::NoNbdDriver)
    }
}

/// A device that we attached. Detached when dropped, on a thread of its own.
#[derive(Debug)]
struct Attachment(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Device,
    way: Way,
    /// What the kernel showed once it was ours: as long as it shows that, nobody else has attached it.
    attached: Option<Attached>,
    detached: AtomicBool,
    _sign: Option<UnixDatagram>,
}

#[derive(Debug)]
enum Way {
    Netlink(Netlink),
    Ioctl(IoctlAttachment),
}

impl Inner {
    fn disconnect(&self) -> nbd_kernel::Result<()> {
        if self.detached.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.way {
            Way::Netlink(netlink) => netlink.disconnect(self.device.index())?,
            Way::Ioctl(attachment) => {
                attachment.disconnect()?;
                let _ = attachment.wait(DETACH_LIMIT); // how it ended is no news: we ended it
            }
        }
        self.detached.store(true, Ordering::Release);
        Ok(())
    }

    fn is_ours(&self) -> bool {
        self.attached.is_some() && self.device.attached() == self.attached
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !self.0.detached.load(Ordering::Acquire) {
            let inner = self.0.clone();
            blocking::begin(move || {
                let _ = inner.disconnect(); // a leftover that a successor frees
            });
        }
    }
}

/// The names of those who use a device, found on a thread of its own.
async fn users_of(device: Device) -> Vec<String> {
    let find = move || {
        users::of_disk(device.disk())
            .iter()
            .map(User::to_string)
            .collect()
    };
    blocking::run(find).await.unwrap_or_default()
}

/// Users who are still there after a moment.
pub(super) async fn lasting_users<F: Future<Output = Vec<String>>>(
    users: impl Fn() -> F,
) -> Vec<String> {
    let first = users().await;
    if first.is_empty() {
        return first;
    }
    sleep(PASSING).await;
    users().await
}

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

fn backend_identifier(name: &str, session: &str) -> String {
    format!("nbd-proxy:{name}:{session}")
}

/// The session in a backend identifier of ours for that configuration. A name may have colons, a session has none.
fn session_of<'a>(backend: &'a str, name: &str) -> Option<&'a str> {
    let (owner, session) = backend.rsplit_once(':')?;
    (owner.strip_prefix("nbd-proxy:")? == name).then_some(session)
}

/// An abstract socket that is bound as long as the process that attached lives: proof against taking another nbd-proxy's
/// device for a leftover, should it have another runtime directory and so another lock.
fn sign_of_life(session: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!(
        "nbd-proxy/{session}"
    ))?)
}

fn is_alive(session: &str) -> bool {
    sign_of_life(session).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Cuts the devices off that a killed process left attached for configuration `name`: whoever reads them gets an error
/// at once rather than when the hold is over. They are free when nobody has them open.
pub(crate) async fn cut_off(name: &str) -> Result<Vec<Device>, DeviceError> {
    let name = name.to_owned();
    blocking::run(move || cut_off_now(&name))
        .await
        .map_err(DeviceError::io("detach a leftover"))?
}

fn cut_off_now(name: &str) -> Result<Vec<Device>, DeviceError> {
    let mut leftovers = Vec::new();
    for device in Device::all() {
        let backend = device.attached().and_then(|attached| attached.backend);
        let Some(session) = backend
            .as_deref()
            .and_then(|backend| session_of(backend, name))
        else {
            continue;
        };
        let path = device.disk().path();
        if is_alive(session) {
            let users = vec!["another nbd-proxy serves this configuration".into()];
            return Err(DeviceError::InUse {
                device: path.display().to_string(),
                users,
            });
        }
        disconnect(device.index())
            .map_err(DeviceError::io(format!("detach {}", path.display())))?;
        leftovers.push(device);
    }
    Ok(leftovers)
}

fn disconnect(index: u32) -> io::Result<()> {
    let netlink = Netlink::open().map_err(io::Error::other)?;
    let netlink = netlink.ok_or_else(|| io::Error::other("there is no NBD netlink family here"))?;
    netlink.disconnect(index).map_err(io::Error::other)
}

/// Frees the devices whose backend identifier names configuration `name`.
pub(crate) async fn recover(name: &str) -> Result<Vec<String>, DeviceError> {
    let mut freed = Vec::new();
    for device in cut_off(name).await? {
        let path = device.disk().path();
        if !poll_until(FREE_LIMIT, || !device_is_left(&device, name)).await {
            let device_path = path.display().to_string();
            return Err(DeviceError::InUse {
                device: device_path,
                users: users_of(device).await,
            });
        }
        freed.push(format!("{} was still attached", path.display()));
    }
    Ok(freed)
}

fn device_is_left(device: &Device, name: &str) -> bool {
    let backend = device.attached().and_then(|attached| attached.backend);
    backend.is_some_and(|backend| session_of(&backend, name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_belongs_to_exactly_one_configuration() {
        let backend = backend_identifier("a:b", "0f");
        assert_eq!(session_of(&backend, "a:b"), Some("0f"));
        assert_eq!(session_of(&backend, "a"), None);
        assert_eq!(session_of("nbd-client:a:0f", "a"), None);
        assert_eq!(session_of("nbd-proxy:a", "a"), None);
    }

    #[test]
    fn a_process_shows_that_it_lives_until_it_ends() {
        let session = format!("test-{}", std::process::id());
        assert!(!is_alive(&session));
        let sign = sign_of_life(&session).unwrap();
        assert!(is_alive(&session));
        drop(sign);
        assert!(!is_alive(&session));
    }
}
