//! Attaching the kernel's device, by netlink or by ioctl, and detaching it.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd_kernel::{
    block::QueueTuning,
    nbd::{
        Attached, ConnectOptions, Device, IoctlAttachment, IoctlOptions, Netlink, driver_loaded,
    },
};

use super::{
    BLOCK_SIZE, DETACH_LIMIT,
    leftovers::{backend_identifier, sign_of_life},
};
use crate::{
    device::{AttachMode, AttachRequest, DeviceError, blocking, client},
    privileged,
};

/// Larger requests and a longer readahead than the kernel's 128 KiB make up for the distance; 2 s is how soon a reader
/// goes on after a reconfiguration (the price: a line "Possible stuck request" in the log at that pace while it waits).
const TUNING: QueueTuning = QueueTuning {
    read_ahead_kb: Some(1024),
    max_sectors_kb: Some(1024),
    io_timeout: Some(Duration::from_secs(2)),
};

/// What is to be attached, for the thread that does it.
pub(super) struct Plan {
    index: Option<u32>,
    mode: AttachMode,
    size: u64,
    flags: u16,
    hold: Duration,
    session: String,
    backend: String,
}

impl Plan {
    pub(super) fn new(index: Option<u32>, request: &AttachRequest) -> Self {
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

    pub(super) fn carry_out(&self, socket: &OwnedFd) -> Result<Attachment, DeviceError> {
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
        .chain(privileged::users_of_disk(device.disk()))
        .collect();
    DeviceError::InUse {
        device: format!("/dev/nbd{index}"),
        users,
    }
}

/// Loads the driver where it is missing and we may.
pub(super) fn load_driver() -> nbd_kernel::Result<()> {
    if driver_loaded() {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        let _ = privileged::load_nbd(); // whether it helped shows next
    }
    if driver_loaded() {
        Ok(())
    } else {
        Err(nbd_kernel::Error::NoNbdDriver)
    }
}

/// A device that we attached. Detached when dropped, on a thread of its own.
#[derive(Debug)]
pub(super) struct Attachment(Arc<Inner>);

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

impl Attachment {
    pub(super) fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether the device is still attached, or held open, as we attached it.
    pub(super) fn is_ours(&self) -> bool {
        self.0.attached.is_some() && self.0.device.attached() == self.0.attached
    }

    /// Whether no process has to live for the device to be there.
    pub(super) fn is_by_netlink(&self) -> bool {
        matches!(self.0.way, Way::Netlink(_))
    }

    /// The device is another process's to detach.
    #[cfg(feature = "serve")]
    pub(super) fn leave(&self) {
        self.0.detached.store(true, Ordering::Release);
    }

    /// One that another process began: `device`, which has a new socket.
    #[cfg(feature = "serve")]
    pub(super) fn continued(device: Device, netlink: Netlink, sign: UnixDatagram) -> Self {
        let attached = device.attached();
        Self(Arc::new(Inner {
            device,
            way: Way::Netlink(netlink),
            attached,
            detached: AtomicBool::new(false),
            _sign: Some(sign),
        }))
    }

    /// Detaches, within `limit`. Needs the socket's other end to read, or to close.
    pub(super) async fn disconnect(&self, limit: Duration) -> io::Result<()> {
        let inner = self.0.clone();
        let disconnect = move || inner.disconnect(limit).map_err(io::Error::other);
        blocking::run_within(limit, disconnect).await
    }
}

impl Inner {
    fn disconnect(&self, limit: Duration) -> nbd_kernel::Result<()> {
        if self.detached.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.way {
            Way::Netlink(netlink) => netlink.disconnect(self.device.index())?,
            Way::Ioctl(attachment) => {
                attachment.disconnect()?;
                let _ = attachment.wait(limit); // how it ended is no news: we ended it
            }
        }
        self.detached.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !self.0.detached.load(Ordering::Acquire) {
            let inner = self.0.clone();
            blocking::begin(move || {
                let _ = inner.disconnect(DETACH_LIMIT); // a leftover that a successor frees
            });
        }
    }
}
