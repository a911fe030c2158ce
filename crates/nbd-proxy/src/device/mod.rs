//! Devices: what the machine gets. A device shows a volume through four verbs: attach, requests, complete, detach.
//!
//! Whatever touches a served device (open, ioctl, stat, close, a look at who uses it) runs outside the task that
//! answers its requests, since it may wait for exactly those answers.

mod blocking;
pub(crate) mod budget;
pub(crate) mod client;
#[cfg(feature = "fuse")]
pub(crate) mod fuse;
#[cfg(feature = "serve")]
mod guard;
#[cfg(not(feature = "serve"))]
#[path = "guard/none.rs"]
mod guard;
pub(crate) mod kernel;
#[cfg(feature = "fuse")]
pub(crate) mod loopdev;
pub(crate) mod socket;
mod tasks;
#[cfg(test)]
mod testing;
mod users;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nbd::{
    Command, Reply,
    wire::{CommandFlags, Errno},
};
use nbd_session::Geometry;
use tokio::sync::mpsc;

use crate::config::TlsFiles;

/// How many requests may wait between a device and its attachment.
pub(crate) const REQUEST_QUEUE: usize = 256;

/// The `device` value of a configuration, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceSpec {
    /// The kernel's NBD device `/dev/nbdN`, or the first free one.
    Kernel {
        /// N.
        index: Option<u32>,
    },
    /// A loop device over a FUSE file.
    Loop,
    /// A FUSE file.
    Fuse {
        /// Default: `R/NAME.img`.
        path: Option<PathBuf>,
    },
    /// An NBD server on a Unix socket.
    Unix {
        /// Default: `R/NAME.sock`.
        path: Option<PathBuf>,
    },
    /// An NBD server on TCP.
    Tcp {
        /// Without TLS loopback only.
        address: SocketAddr,
        /// NBD's own TLS.
        tls: Option<TlsFiles>,
    },
    /// The first of `nbd:`, `loop:`, `fuse:`, `unix:` that works here.
    Auto,
}

/// Removes the socket of a killed process at `path`, if it is one of our user's and nobody listens on it; says what was
/// removed.
#[cfg(feature = "serve")]
pub(crate) fn remove_dead_socket(path: &Path) -> Result<Vec<String>, DeviceError> {
    // Whatever the name, the path is given.
    socket::recover(Some(path), "", Path::new(""))
}

impl DeviceSpec {
    /// Whether what it needs of the configuration is there, as far as that is known before it is attached.
    #[cfg(feature = "serve")]
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        match self {
            Self::Tcp {
                tls: Some(files), ..
            } => guard::Guard::check(files),
            _ => Ok(()),
        }
    }

    /// Whether it is, or `auto` may make it, the kernel's NBD device.
    #[cfg(feature = "serve")]
    pub(crate) fn may_be_kernel(&self) -> bool {
        matches!(self, Self::Kernel { .. } | Self::Auto)
    }

    /// Whether it is, or `auto` may make it, a loop device.
    #[cfg(feature = "serve")]
    pub(crate) fn may_be_loop(&self) -> bool {
        matches!(self, Self::Loop | Self::Auto)
    }
}

/// As the configuration writes it.
impl fmt::Display for DeviceSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        match self {
            Self::Kernel { index: Some(index) } => write!(formatter, "/dev/nbd{index}"),
            Self::Kernel { index: None } => formatter.write_str("nbd:"),
            Self::Loop => formatter.write_str("loop:"),
            Self::Fuse { path: given } => write!(formatter, "fuse:{}", path(given)),
            Self::Unix { path: given } => write!(formatter, "unix:{}", path(given)),
            Self::Tcp { address, .. } => write!(formatter, "tcp:{address}"),
            Self::Auto => formatter.write_str("auto"),
        }
    }
}

/// How a kernel device is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AttachMode {
    /// By netlink where the kernel has it, else by ioctl.
    #[default]
    Automatic,
    /// By generic netlink.
    Netlink,
    /// By ioctl, with a thread in `NBD_DO_IT`.
    Ioctl,
}

/// One request of a device to its attachment.
#[derive(Debug)]
pub(crate) struct DeviceRequest {
    /// Flags of the request; only those that its command permits.
    pub(crate) flags: CommandFlags,
    /// What is asked; inside the geometry.
    pub(crate) command: Command,
    /// Where the one answer goes.
    pub(crate) reply: ReplySlot,
}

/// The result of a request, with the tag that its device gave it.
pub(crate) type Completion = (u64, Result<Reply, Errno>);

/// Where the answer to one request goes. A slot that is dropped unanswered answers `ESHUTDOWN`.
#[derive(Debug)]
pub(crate) struct ReplySlot {
    tag: u64,
    sender: Option<mpsc::UnboundedSender<Completion>>,
}

impl ReplySlot {
    /// A slot whose answer arrives at `sender` as `(tag, result)`.
    pub(crate) fn new(tag: u64, sender: mpsc::UnboundedSender<Completion>) -> Self {
        Self {
            tag,
            sender: Some(sender),
        }
    }

    /// Answers. A device that no longer listens is fine.
    pub(crate) fn answer(mut self, result: Result<Reply, Errno>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Reply, Errno>) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send((self.tag, result));
        }
    }
}

impl Drop for ReplySlot {
    fn drop(&mut self) {
        self.send(Err(Errno::ESHUTDOWN));
    }
}

/// What a device reports by itself.
#[derive(Debug)]
pub(crate) enum DeviceEvent {
    /// The kernel device was disconnected by somebody (`nbd-client -d`): the session ends in order.
    Disconnected,
    /// The device no longer works: the session ends with this sentence.
    Failed(String),
}

/// What a device needs to come into being. Cloned by `auto` for each kind that it tries.
#[derive(Debug, Clone)]
pub(crate) struct AttachRequest {
    /// Name of the configuration.
    pub(crate) name: String,
    /// ID of the session; part of a kernel device's backend identifier `nbd-proxy:NAME:SESSION`.
    pub(crate) session: String,
    /// Sizes and abilities of the volume.
    pub(crate) geometry: Geometry,
    /// How long the session is kept without a link; for `NBD_ATTR_DEAD_CONN_TIMEOUT`.
    pub(crate) hold: Duration,
    /// How a kernel device is attached.
    pub(crate) attach: AttachMode,
    /// How much memory the clients of a socket, or the kernel, may take together, in bytes.
    pub(crate) memory: usize,
    /// Where requests go: a queue of [`REQUEST_QUEUE`].
    pub(crate) requests: mpsc::Sender<DeviceRequest>,
    /// Where events go.
    pub(crate) events: mpsc::UnboundedSender<DeviceEvent>,
    /// R: where default paths and state files are. Exists.
    pub(crate) runtime_dir: PathBuf,
}

/// Why a device could not be attached, freed or detached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// This machine cannot, and what would help. `auto` goes on with the next kind.
    #[error("{device} does not work on this machine: {cause}; {remedy}")]
    Unavailable {
        /// `nbd:`, `/dev/nbd0`, …
        device: String,
        /// What is missing.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// Somebody uses it, or has attached it.
    #[error("{device} is in use: {}", users.join(", "))]
    InUse {
        /// Its path.
        device: String,
        /// `mounted on /mnt`, `open in process 17 (cat)`, …
        users: Vec<String>,
    },
    /// The configuration asks for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// The operating system refused a step.
    #[error("can't {action}: {source}")]
    Io {
        /// What was tried: `bind to /run/x.sock`.
        action: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl DeviceError {
    /// For `map_err`: names what was tried.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// How a detach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detached {
    /// Nothing is left.
    Free,
    /// Disconnected, but somebody still has it open; [`AttachedDevice::drained`] waits for the last close.
    Draining {
        /// Who.
        users: Vec<String>,
    },
}

/// An attached device. Its methods may take long and wait for answers to the device's own requests: call them from
/// a task of their own (the attachment keeps it in an `Arc`).
#[derive(Debug)]
pub(crate) enum AttachedDevice {
    /// `/dev/nbdN`.
    Kernel(kernel::KernelDevice),
    /// `/dev/loopN`.
    #[cfg(feature = "fuse")]
    Loop(loopdev::LoopDevice),
    /// A FUSE file.
    #[cfg(feature = "fuse")]
    Fuse(fuse::FuseDevice),
    /// An NBD server on a socket.
    Socket(socket::SocketDevice),
}

macro_rules! each_kind {
    ($self:expr, $device:ident => $call:expr) => {
        match $self {
            AttachedDevice::Kernel($device) => $call,
            #[cfg(feature = "fuse")]
            AttachedDevice::Loop($device) => $call,
            #[cfg(feature = "fuse")]
            AttachedDevice::Fuse($device) => $call,
            AttachedDevice::Socket($device) => $call,
        }
    };
}

impl AttachedDevice {
    /// Where the machine finds it: a path, or `ADDR:PORT`.
    pub(crate) fn path(&self) -> &str {
        each_kind!(self, device => device.path())
    }

    /// Who uses it, each a few words such as `mounted on /mnt`.
    pub(crate) async fn users(&self) -> Vec<String> {
        each_kind!(self, device => device.users().await)
    }

    /// Takes the device from the machine, within 5 s. Without `force` a device that is in use is left as it is, with
    /// [`DeviceError::InUse`]. With it, what is outstanding fails. A second call after success does nothing.
    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        each_kind!(self, device => device.detach(force).await)
    }

    /// Whether it is there without us, for another process to take over.
    pub(crate) fn outlives_us(&self) -> bool {
        match self {
            Self::Kernel(device) => device.outlives_us(),
            _ => false,
        }
    }

    /// Lets go of a device that [outlives us](Self::outlives_us), which stays as it is.
    #[cfg(feature = "serve")]
    pub(crate) async fn leave(&self) {
        if let Self::Kernel(device) = self {
            device.leave().await;
        }
    }

    /// Waits until the last user of a detached device has closed it.
    pub(crate) async fn drained(&self) {
        each_kind!(self, device => device.drained().await);
    }
}

/// Attaches a device and waits until it has its size. Requests may come before this returns.
pub(crate) async fn attach(
    spec: &DeviceSpec,
    request: AttachRequest,
) -> Result<AttachedDevice, DeviceError> {
    match spec {
        DeviceSpec::Kernel { index } => kernel::attach(*index, request)
            .await
            .map(AttachedDevice::Kernel),
        #[cfg(feature = "fuse")]
        DeviceSpec::Loop => loopdev::attach(request).await.map(AttachedDevice::Loop),
        #[cfg(feature = "fuse")]
        DeviceSpec::Fuse { path } => fuse::attach(path.as_deref(), request)
            .await
            .map(AttachedDevice::Fuse),
        #[cfg(not(feature = "fuse"))]
        DeviceSpec::Loop | DeviceSpec::Fuse { .. } => Err(DeviceError::Unavailable {
            device: "FUSE".into(),
            cause: "this nbd-proxy was built without it".into(),
            remedy: "build it with the feature \"fuse\", or choose another device".into(),
        }),
        DeviceSpec::Unix { path } => socket::attach_unix(path.as_deref(), request)
            .await
            .map(AttachedDevice::Socket),
        DeviceSpec::Tcp { address, tls } => socket::attach_tcp(*address, tls.as_ref(), request)
            .await
            .map(AttachedDevice::Socket),
        DeviceSpec::Auto => Box::pin(attach_first_that_works(request)).await,
    }
}

/// The kinds that `auto` tries, best first.
const AUTOMATIC: [DeviceSpec; 4] = [
    DeviceSpec::Kernel { index: None },
    DeviceSpec::Loop,
    DeviceSpec::Fuse { path: None },
    DeviceSpec::Unix { path: None },
];

async fn attach_first_that_works(request: AttachRequest) -> Result<AttachedDevice, DeviceError> {
    let mut reasons = Vec::new();
    for spec in AUTOMATIC {
        match attach(&spec, request.clone()).await {
            Ok(device) => return Ok(device),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(DeviceError::Refused(format!(
        "no kind of device works here: {}",
        reasons.join("; ")
    )))
}

/// Fails what is asked of a device that a killed process left of configuration `name`, rather than have it wait for a
/// new socket. Freeing it comes later, with [`recover`]. `has_kernel`: a kernel device was left, whatever `spec` says now.
pub(crate) async fn cut_off(
    spec: &DeviceSpec,
    name: &str,
    has_kernel: bool,
) -> Result<(), DeviceError> {
    if has_kernel || matches!(spec, DeviceSpec::Kernel { .. } | DeviceSpec::Auto) {
        kernel::cut_off(name).await?;
    }
    Ok(())
}

/// Frees what a killed process left of configuration `name`, and nothing else. Runs while the configuration's lock is
/// held, so whatever bears its name is a leftover. Says what was freed, for the log; where a leftover is still in
/// use, [`DeviceError::InUse`] names by whom. `has_kernel` as for [`cut_off`].
pub(crate) async fn recover(
    spec: &DeviceSpec,
    name: &str,
    runtime_dir: &Path,
    has_kernel: bool,
) -> Result<Vec<String>, DeviceError> {
    let mut freed = Vec::new();
    if has_kernel || matches!(spec, DeviceSpec::Kernel { .. } | DeviceSpec::Auto) {
        freed.extend(kernel::recover(name).await?);
    }
    #[cfg(feature = "fuse")]
    if matches!(
        spec,
        DeviceSpec::Loop | DeviceSpec::Fuse { .. } | DeviceSpec::Auto
    ) {
        freed.extend(fuse::recover(spec, name, runtime_dir).await?);
    }
    if let DeviceSpec::Unix { path } = spec {
        freed.extend(socket::recover(path.as_deref(), name, runtime_dir)?);
    }
    Ok(freed)
}
