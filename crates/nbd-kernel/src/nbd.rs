//! The kernel's NBD driver (`drivers/block/nbd.c`): which devices there are, and the two ways to attach one.
//!
//! - [`Netlink`]: the device is tied to nobody's life, carries a backend identifier, and can be given a new
//!   socket. A second attach is refused by the kernel.
//! - [`IoctlAttachment`]: for kernels without the netlink family (before 4.12), and for network namespaces
//!   other than the first, where the family is not seen. A thread sits in `NBD_DO_IT`. A second attach by
//!   ioctl would ruin the first, so everything here looks before it attaches.

mod ioctl;
mod netlink;

use std::path::Path;

pub use ioctl::{IoctlAttachment, IoctlOptions};
pub use netlink::{ConnectOptions, LinkDeadWatch, Netlink};

use crate::block::{self, Disk};
use crate::error::{Error, Result};

/// `NBD_FLAG_READ_ONLY` and the like, as the protocol's transmission flags.
pub type ServerFlags = u16;

/// One `/dev/nbdN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    index: u32,
    disk: Disk,
}

/// Who attached a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The process that attached it. It may have ended long ago.
    pub pid: u32,
    /// The backend identifier that it gave (netlink only, Linux 5.14 and later).
    pub backend: Option<String>,
}

impl Device {
    /// `/dev/nbdINDEX`; it need not exist.
    pub fn new(index: u32) -> Self {
        Device {
            index,
            disk: Disk::new(&format!("nbd{index}")),
        }
    }

    /// All devices that the driver has, in order.
    pub fn all() -> Vec<Self> {
        Self::all_under(Path::new("/sys"))
    }

    fn all_under(sys: &Path) -> Vec<Self> {
        block::disks(sys, "nbd")
            .into_iter()
            .map(|(index, disk)| Device { index, disk })
            .collect()
    }

    /// N of `/dev/nbdN`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The block device.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Who attached it; `None` when it is free. A device that was disconnected stays attached until the last
    /// one who has it open closes it.
    pub fn attached(&self) -> Option<Attached> {
        let pid = self.disk.attribute("pid")?.trim().parse().ok()?;
        let backend = self.disk.attribute("backend");
        Some(Attached { pid, backend })
    }

    /// Fails unless the device exists and is free, so that an attach harms nobody.
    pub fn ensure_free(&self) -> Result<()> {
        if !driver_loaded() {
            return Err(Error::NoNbdDriver);
        }
        if !self.disk.exists() {
            return Err(Error::NoDevice { index: self.index });
        }
        let Some(attached) = self.attached() else {
            return Ok(());
        };
        let by = match attached.backend {
            Some(backend) => format!(": process {} attached it as {backend:?}", attached.pid),
            None => format!(": process {} attached it", attached.pid),
        };
        Err(Error::Busy {
            index: self.index,
            by: Some(by),
        })
    }
}

/// Whether the driver is there, as a module or built in.
pub fn driver_loaded() -> bool {
    Path::new("/sys/module/nbd").exists() || Disk::new("nbd0").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    #[test]
    fn facts_are_read_from_sysfs() {
        let tree = Tree::new();
        tree.file("block/nbd10/size", "0\n");
        tree.file("block/nbd2/size", "2048\n");
        tree.file("block/nbd2/pid", "321\n");
        tree.file("block/nbd2/backend", "nbd-proxy:0:abc\n");
        tree.file("block/nbd2/dev", "43:64\n");
        tree.file("block/nbd2/ro", "1\n");
        tree.file("block/nbd2/nbd2p1/dev", "43:65\n");
        tree.file("block/nbd2/nbd2p1/partition", "1\n");
        tree.file("block/nbd2/nbd2p1/holders/dm-0/dev", "253:0\n");
        tree.file("block/nbdx/size", "0\n");

        let devices = Device::all_under(tree.path());
        let indexes: Vec<_> = devices.iter().map(Device::index).collect();
        assert_eq!(indexes, [2, 10]);
        let disk = devices[0].disk();
        assert_eq!(disk.size(), 1 << 20);
        assert!(disk.read_only());
        assert_eq!(
            disk.device_numbers().into_iter().collect::<Vec<_>>(),
            [(43, 64), (43, 65)]
        );
        assert_eq!(disk.holders().into_iter().collect::<Vec<_>>(), ["dm-0"]);
        let attached = devices[0].attached().unwrap();
        assert_eq!(attached.pid, 321);
        assert_eq!(attached.backend.as_deref(), Some("nbd-proxy:0:abc"));
        assert_eq!(devices[1].attached(), None);
    }
}
