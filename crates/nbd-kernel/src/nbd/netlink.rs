//! The driver's generic netlink family (`include/uapi/linux/nbd-netlink.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::nbd::{Device, ServerFlags};
use crate::netlink::{Attributes, Family, attribute, attributes, u32_at};

const NBD_CMD_CONNECT: u8 = 1;
const NBD_CMD_DISCONNECT: u8 = 2;
const NBD_CMD_RECONFIGURE: u8 = 3;
const NBD_CMD_LINK_DEAD: u8 = 4;
const NBD_CMD_STATUS: u8 = 5;

const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_ATTR_DEVICE_LIST: u16 = 9;
const NBD_ATTR_BACKEND_IDENTIFIER: u16 = 10;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;
const NBD_DEVICE_INDEX: u16 = 1;
const NBD_DEVICE_CONNECTED: u16 = 2;

/// What a device is to be, for [`Netlink::connect`].
#[derive(Debug, Clone, Copy)]
pub struct ConnectOptions<'a> {
    /// Which device; `None` for the first free one (the driver makes another where none is).
    pub index: Option<u32>,
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// Bytes, a power of two from 512 to the page size.
    pub block_size: u32,
    /// The export's transmission flags.
    pub server_flags: ServerFlags,
    /// How long requests wait for a new socket once the old one is dead. Whole seconds; 0 fails them at once.
    pub dead_connection_timeout: Duration,
    /// Shown in `/sys/block/nbdN/backend`; [`Netlink::reconfigure`] must bring the same.
    pub backend_identifier: &'a str,
}

/// A socket to the driver. CONNECT, DISCONNECT and RECONFIGURE need CAP_SYS_ADMIN.
#[derive(Debug)]
pub struct Netlink(Family);

impl Netlink {
    /// `None` where the kernel has no NBD netlink family: older than 4.12, module not loaded, or another
    /// network namespace than the first.
    pub fn open() -> Result<Option<Self>> {
        Ok(Family::open("nbd")?.map(Netlink))
    }

    /// Attaches a device to one connected socket in transmission phase and returns the device's number. The
    /// kernel keeps a reference to the socket of its own. The request timeout is off (`NBD_ATTR_TIMEOUT` 0), as
    /// the kernel would cut a socket that lives but has to wait.
    pub fn connect(&self, options: &ConnectOptions<'_>, socket: BorrowedFd<'_>) -> Result<u32> {
        let mut request = Attributes::default();
        if let Some(index) = options.index {
            Device::new(index).ensure_free()?;
            request = request.u32(NBD_ATTR_INDEX, index);
        }
        let request = request
            .u64(NBD_ATTR_SIZE_BYTES, options.size)
            .u64(NBD_ATTR_BLOCK_SIZE_BYTES, u64::from(options.block_size))
            .u64(NBD_ATTR_TIMEOUT, 0)
            .u64(NBD_ATTR_SERVER_FLAGS, u64::from(options.server_flags))
            .u64(
                NBD_ATTR_DEAD_CONN_TIMEOUT,
                options.dead_connection_timeout.as_secs(),
            )
            .string(NBD_ATTR_BACKEND_IDENTIFIER, options.backend_identifier)
            .nested(NBD_ATTR_SOCKETS, &socket_list(socket));
        let reply = self.0.call(NBD_CMD_CONNECT, &request).map_err(|e| {
            match (options.index, e.raw_os_error()) {
                (Some(index), Some(libc::EBUSY)) => Error::Busy { index, by: None },
                _ => failed("attach an NBD device", e),
            }
        })?;
        attribute(&reply, NBD_ATTR_INDEX)
            .and_then(|index| u32_at(index, 0))
            .ok_or(Error::Malformed(
                "an NBD device was attached without a number",
            ))
    }

    /// Gives an attached device a new socket in place of its dead one, and a new
    /// [`ConnectOptions::dead_connection_timeout`]. The kernel also answers success where no socket was dead and
    /// nothing was replaced; then it does not keep the socket.
    pub fn reconfigure(
        &self,
        index: u32,
        backend_identifier: &str,
        dead_connection_timeout: Duration,
        socket: BorrowedFd<'_>,
    ) -> Result<()> {
        let request = Attributes::default()
            .u32(NBD_ATTR_INDEX, index)
            .u64(
                NBD_ATTR_DEAD_CONN_TIMEOUT,
                dead_connection_timeout.as_secs(),
            )
            .string(NBD_ATTR_BACKEND_IDENTIFIER, backend_identifier)
            .nested(NBD_ATTR_SOCKETS, &socket_list(socket));
        match self.0.call(NBD_CMD_RECONFIGURE, &request) {
            Ok(_) => Ok(()),
            Err(e) => Err(failed(&format!("reconfigure /dev/nbd{index}"), e)),
        }
    }

    /// Detaches: sends NBD_CMD_DISC, shuts the socket down, fails what is outstanding. The device is free once
    /// nobody has it open. Works on a device that was attached by ioctl as well.
    pub fn disconnect(&self, index: u32) -> Result<()> {
        let request = Attributes::default().u32(NBD_ATTR_INDEX, index);
        match self.0.call(NBD_CMD_DISCONNECT, &request) {
            Ok(_) => Ok(()),
            Err(e) => Err(failed(&format!("detach /dev/nbd{index}"), e)),
        }
    }

    /// The devices' numbers, and whether each is attached.
    pub fn status(&self) -> Result<Vec<(u32, bool)>> {
        let reply = self
            .0
            .call(NBD_CMD_STATUS, &Attributes::default())
            .doing("list the NBD devices")?;
        let list = attribute(&reply, NBD_ATTR_DEVICE_LIST).unwrap_or_default();
        let devices = attributes(list).filter_map(|(_, item)| {
            let index = u32_at(attribute(item, NBD_DEVICE_INDEX)?, 0)?;
            let connected = *attribute(item, NBD_DEVICE_CONNECTED)?.first()? != 0;
            Some((index, connected))
        });
        Ok(devices.collect())
    }

    /// Listens for dead connections from now on.
    pub fn watch(self) -> Result<LinkDeadWatch> {
        self.0.subscribe()?;
        Ok(LinkDeadWatch(self.0))
    }
}

/// Hears which devices lost a connection (`NBD_CMD_LINK_DEAD`).
#[derive(Debug)]
pub struct LinkDeadWatch(Family);

impl LinkDeadWatch {
    /// Waits for the next device that lost its connection and returns its number; `None` when `timeout` ran out
    /// or another notice came.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<u32>> {
        let notice = self.0.notice(timeout)?;
        Ok(notice
            .filter(|notice| notice.command == NBD_CMD_LINK_DEAD)
            .and_then(|notice| u32_at(attribute(&notice.attributes, NBD_ATTR_INDEX)?, 0)))
    }
}

fn socket_list(socket: BorrowedFd<'_>) -> Attributes {
    let descriptor = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
    let item = Attributes::default().u32(NBD_SOCK_FD, descriptor);
    Attributes::default().nested(NBD_SOCK_ITEM, &item)
}

fn failed(action: &str, source: io::Error) -> Error {
    Error::Io {
        action: action.to_owned(),
        source,
    }
}
