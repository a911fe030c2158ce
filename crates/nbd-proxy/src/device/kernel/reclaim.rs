//! Going on with a device that a process left attached which was killed, or which left it to us.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

use nbd_kernel::nbd::{Device, Netlink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    KernelDevice, Serving,
    attachment::Attachment,
    into_tokio,
    leftovers::{backend_identifier, sign_of_life},
};
use crate::device::{AttachRequest, DeviceError, DeviceSpec, blocking};

/// How long a process that was killed may take to be gone, and the kernel to notice that its socket is dead.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What was left, as its process noted it.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    /// What the configuration says now.
    pub(crate) spec: DeviceSpec,
    /// Its path.
    pub(crate) device: String,
    /// Name of the configuration.
    pub(crate) name: String,
    /// ID of the session.
    pub(crate) session: String,
    /// Its length, in bytes.
    pub(crate) size: u64,
    /// How long the session is kept without a link.
    pub(crate) hold: Duration,
}

/// A device that is ours from now on. The kernel's requests wait until it is served.
#[derive(Debug)]
pub(crate) struct Reclaimed {
    path: String,
    attachment: Attachment,
    stream: tokio::net::UnixStream,
}

impl Reclaimed {
    /// Its path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Begins to answer the kernel. Must be called within the runtime.
    pub(crate) fn serve(self, request: &AttachRequest) -> KernelDevice {
        let serving = Serving::start(self.stream, request);
        KernelDevice {
            path: self.path,
            attachment: self.attachment,
            serving,
        }
    }
}

/// Takes the device over, unless it is not what was left, or its process lives. Then it is as it was.
pub(crate) async fn reclaim(left: Left) -> Result<Reclaimed, DeviceError> {
    let (attachment, stream) = blocking::run(move || left.reclaim())
        .await
        .map_err(DeviceError::io("take over a device"))??;
    let path = attachment.device().disk().path();
    Ok(Reclaimed {
        path: path.to_string_lossy().into_owned(),
        attachment,
        stream: into_tokio(stream)?,
    })
}

impl Left {
    fn reclaim(&self) -> Result<(Attachment, UnixStream), DeviceError> {
        let backend = backend_identifier(&self.name, &self.session);
        let device = self.find(&backend)?;
        let sign = self.show_life()?;
        let netlink = Netlink::open()
            .map_err(io::Error::other)
            .and_then(|netlink| {
                netlink.ok_or_else(|| io::Error::other("there is no NBD netlink family here"))
            })
            .map_err(self.failed())?;
        let stream = self.replace_socket(&netlink, &device, &backend)?;
        Ok((Attachment::continued(device, netlink, sign), stream))
    }

    /// The device, if it is as it was left, and still wanted.
    fn find(&self, backend: &str) -> Result<Device, DeviceError> {
        let refused = |cause: &str| Err(DeviceError::Refused(format!("{} {cause}", self.device)));
        let is_ours = |device: &Device| {
            let attached = device.attached().and_then(|attached| attached.backend);
            attached.as_deref() == Some(backend)
        };
        let Some(device) = Device::all().into_iter().find(is_ours) else {
            return refused("is not attached any more");
        };
        let is_wanted = match self.spec {
            DeviceSpec::Kernel { index } => index.is_none_or(|index| index == device.index()),
            DeviceSpec::Auto => true,
            _ => false,
        };
        if !is_wanted {
            return refused("is not what the configuration names any more");
        }
        if device.disk().size() != self.size {
            return refused("has changed its size");
        }
        Ok(device)
    }

    /// Shows that we live. Whoever left the device does not, once this works.
    fn show_life(&self) -> Result<UnixDatagram, DeviceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match sign_of_life(&self.session) {
                Ok(sign) => return Ok(sign),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(self.failed()(error));
                }
                Err(_) if Instant::now() < deadline => thread::sleep(POLL),
                Err(_) => {
                    return Err(DeviceError::InUse {
                        device: self.device.clone(),
                        users: vec!["another nbd-proxy serves it".into()],
                    });
                }
            }
        }
    }

    /// Gives the kernel one end of a new socket pair; gives the other.
    fn replace_socket(
        &self,
        netlink: &Netlink,
        device: &Device,
        backend: &str,
    ) -> Result<UnixStream, DeviceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (ours, theirs) = UnixStream::pair().map_err(self.failed())?;
            netlink
                .reconfigure(device.index(), backend, self.hold, theirs.as_fd())
                .map_err(|error| self.failed()(io::Error::other(error)))?;
            drop(theirs);
            // A program that is just being started has the other end as well, until its exec.
            thread::sleep(POLL);
            if !is_hung_up(&ours).map_err(self.failed())? {
                return Ok(ours);
            }
            // The kernel has not noticed yet that the old socket is dead, and says yes all the same.
            if Instant::now() >= deadline {
                let alive = io::Error::other("the socket that it has does not end");
                return Err(self.failed()(alive));
            }
        }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> DeviceError + use<> {
        DeviceError::io(format!("take over {}", self.device))
    }
}

/// Whether nobody has the other end.
fn is_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_other_end_was_not_kept_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!is_hung_up(&ours).unwrap());
        drop(theirs);
        let deadline = Instant::now() + PATIENCE;
        // A program that another test is just starting has it until its exec.
        while !is_hung_up(&ours).unwrap() {
            assert!(Instant::now() < deadline);
            thread::sleep(POLL);
        }
    }
}
