//! What sysfs tells of a block device, and its queue's knobs (`Documentation/ABI/stable/sysfs-block`).
//!
//! Nothing here opens the device itself, so nothing here waits for whoever serves it. Writing a knob may
//! wait for requests in flight (newer kernels freeze the queue): do that where waiting is allowed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A whole disk by its kernel name, such as `nbd0` or `loop3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    name: String,
    directory: PathBuf,
}

/// A device number: major and minor.
pub type DeviceNumber = (u32, u32);

/// How a disk's queue is set up once it is attached. `None` leaves the kernel's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueTuning {
    /// How far the page cache reads ahead of a sequential reader, in KiB (kernel default 128).
    pub read_ahead_kb: Option<u32>,
    /// The largest request in KiB; capped at what the driver can do (`max_hw_sectors_kb`).
    pub max_sectors_kb: Option<u32>,
    /// How often the block layer looks after requests that are in flight (kernel default 30 s). A device that
    /// was reconfigured goes on with them at the next such look.
    pub io_timeout: Option<Duration>,
}

impl Disk {
    /// The disk of that kernel name; it need not exist.
    pub fn new(name: &str) -> Self {
        Self::under(Path::new("/sys"), name)
    }

    pub(crate) fn under(sys: &Path, name: &str) -> Self {
        Disk {
            name: name.to_owned(),
            directory: sys.join("block").join(name),
        }
    }

    /// The kernel's name: `nbd0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device node: `/dev/nbd0`.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether the kernel has this disk.
    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Capacity in bytes; 0 where nothing is attached.
    pub fn size(&self) -> u64 {
        self.number("size").unwrap_or(0).saturating_mul(512)
    }

    /// Whether the kernel refuses writes.
    pub fn read_only(&self) -> bool {
        self.number("ro") == Some(1)
    }

    /// The numbers of the disk and of all its partitions.
    pub fn device_numbers(&self) -> BTreeSet<DeviceNumber> {
        std::iter::once(self.directory.clone())
            .chain(self.partitions())
            .filter_map(|directory| parse_device_number(&read(&directory, "dev")?))
            .collect()
    }

    /// The kernel names of the disk and of all its partitions.
    pub fn names(&self) -> BTreeSet<String> {
        std::iter::once(self.directory.clone())
            .chain(self.partitions())
            .filter_map(|directory| Some(directory.file_name()?.to_str()?.to_owned()))
            .collect()
    }

    /// Block devices built upon this one or upon a partition of it (device mapper, md), by kernel name.
    pub fn holders(&self) -> BTreeSet<String> {
        std::iter::once(self.directory.clone())
            .chain(self.partitions())
            .flat_map(|directory| entries(&directory.join("holders")))
            .filter_map(|holder| Some(holder.file_name()?.to_str()?.to_owned()))
            .collect()
    }

    /// Sets what `tuning` names; the knobs that could not be set, with the reason.
    pub fn tune(&self, tuning: &QueueTuning) -> Vec<(&'static str, io::Error)> {
        let max_sectors_kb = tuning.max_sectors_kb.map(|kb| {
            let hardware = self.number("queue/max_hw_sectors_kb").unwrap_or(u64::MAX);
            u64::from(kb).min(hardware)
        });
        let io_timeout_ms = tuning
            .io_timeout
            .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        [
            ("queue/max_sectors_kb", max_sectors_kb),
            ("queue/read_ahead_kb", tuning.read_ahead_kb.map(u64::from)),
            ("queue/io_timeout", io_timeout_ms),
        ]
        .into_iter()
        .filter_map(|(knob, value)| {
            let written = fs::write(self.directory.join(knob), value?.to_string());
            Some((knob, written.err()?))
        })
        .collect()
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        read(&self.directory, name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.attribute(name)?.parse().ok()
    }

    fn partitions(&self) -> Vec<PathBuf> {
        entries(&self.directory)
            .filter(|entry| entry.join("partition").exists())
            .collect()
    }
}

/// All disks whose kernel name is `prefix` and a number, in order of the number.
pub(crate) fn disks(sys: &Path, prefix: &str) -> Vec<(u32, Disk)> {
    let mut disks: Vec<_> = entries(&sys.join("block"))
        .filter_map(|entry| {
            let name = entry.file_name()?.to_str()?;
            let index = name.strip_prefix(prefix)?.parse().ok()?;
            Some((index, Disk::under(sys, name)))
        })
        .collect();
    disks.sort_by_key(|(index, _)| *index);
    disks
}

/// `MAJOR:MINOR` in decimal.
pub(crate) fn parse_device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// An attribute without its final newline.
pub(crate) fn read(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// The entries of a directory; none where it can't be read.
pub(crate) fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}
