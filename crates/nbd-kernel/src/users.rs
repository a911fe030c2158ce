//! Who uses a device or a file: mounts, swap, holders, USB gadgets, open descriptors.
//!
//! Nothing here opens, stats or reads the device or the file itself, so nothing here waits for whoever serves
//! it. Without root the open files and mounts of other users' processes are not seen.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::block::{self, DeviceNumber, Disk, entries, read};
use crate::loopdev::backing_file;
use crate::mounts;

/// Somebody who uses a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum User {
    /// It, a partition of it, or what is served on top of it is mounted.
    Mounted {
        /// Where.
        mount_point: PathBuf,
        /// A process that sees the mount, where it is in another mount namespace than ours.
        seen_by: Option<u32>,
    },
    /// It is swapped on.
    Swap(PathBuf),
    /// Another block device is built upon it (`dm-0`, `md0`, `loop1`).
    Holder(String),
    /// It is the file of a USB gadget's LUN.
    UsbGadget {
        /// The gadget's directory in configfs.
        gadget: String,
        /// The function and LUN: `mass_storage.usb0/lun.0`.
        lun: String,
    },
    /// A process has it open.
    Process {
        /// The process.
        pid: u32,
        /// Its short name (`/proc/PID/comm`).
        name: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mounted {
                mount_point,
                seen_by,
            } => {
                write!(f, "mounted on {}", mount_point.display())?;
                match seen_by {
                    Some(pid) => write!(f, " (as process {pid} sees it)"),
                    None => Ok(()),
                }
            }
            User::Swap(path) => write!(f, "swap on {}", path.display()),
            User::Holder(name) => write!(f, "held by /dev/{name}"),
            User::UsbGadget { gadget, lun } => write!(f, "the file of USB gadget {gadget}'s {lun}"),
            User::Process { pid, name } => write!(f, "open in process {pid} ({name})"),
        }
    }
}

/// Everybody who uses the disk or a partition of it, apart from the processes `apart_from`: those that serve it.
pub fn of_disk(disk: &Disk, apart_from: &[u32]) -> Vec<User> {
    Search::of_disk(disk, apart_from).run(Path::new("/proc"), Path::new("/sys"))
}

/// Everybody who uses the file that is mounted at `path` (a FUSE file), apart from the processes `apart_from` and the
/// mount itself. `path` is absolute and without symbolic links.
pub fn of_mounted_file(path: &Path, apart_from: &[u32]) -> Vec<User> {
    Search::of_mounted_file(path, apart_from).run(Path::new("/proc"), Path::new("/sys"))
}

/// What to look for.
struct Search {
    /// The device nodes, or the file.
    paths: HashSet<PathBuf>,
    /// The block device's numbers; a file system upon it has one of them.
    numbers: HashSet<DeviceNumber>,
    holders: Vec<String>,
    /// The mount that is ours.
    own_mount: Option<PathBuf>,
    /// The processes that are ours.
    own_processes: HashSet<u32>,
}

impl Search {
    fn of_disk(disk: &Disk, apart_from: &[u32]) -> Self {
        Search {
            paths: disk
                .names()
                .iter()
                .map(|n| Path::new("/dev").join(n))
                .collect(),
            numbers: disk.device_numbers().into_iter().collect(),
            holders: disk.holders().into_iter().collect(),
            own_mount: None,
            own_processes: apart_from.iter().copied().collect(),
        }
    }

    fn of_mounted_file(path: &Path, apart_from: &[u32]) -> Self {
        let numbers = mounts::own()
            .into_iter()
            .filter(|mount| mount.mount_point == path)
            .map(|mount| mount.device)
            .collect();
        Search {
            paths: HashSet::from([path.to_owned()]),
            numbers,
            holders: Vec::new(),
            own_mount: Some(path.to_owned()),
            own_processes: apart_from.iter().copied().collect(),
        }
    }

    fn run(&self, proc: &Path, sys: &Path) -> Vec<User> {
        let mut users = self.mounts(proc);
        users.extend(self.swaps(proc));
        users.extend(self.holders.iter().cloned().map(User::Holder));
        users.extend(self.loops(sys));
        users.extend(self.gadgets(sys));
        users.extend(self.processes(proc));
        users
    }

    /// Mounts in every mount namespace that a visible process lives in, ours first.
    fn mounts(&self, proc: &Path) -> Vec<User> {
        let mut namespaces = HashSet::new();
        let mut found = HashSet::new();
        let mut users = Vec::new();
        let own = proc.join("self");
        for (pid, process) in
            std::iter::once((None, own)).chain(processes(proc).map(|(pid, path)| (Some(pid), path)))
        {
            let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else {
                continue;
            };
            if !namespaces.insert(namespace) {
                continue;
            }
            for mount in mounts::of(&process) {
                let ours = self.own_mount.as_ref() == Some(&mount.mount_point);
                let upon =
                    self.numbers.contains(&mount.device) || self.paths.contains(&mount.source);
                // One mount is seen from many namespaces; it is told once.
                if upon && !ours && found.insert(mount.mount_point.clone()) {
                    users.push(User::Mounted {
                        mount_point: mount.mount_point,
                        seen_by: pid,
                    });
                }
            }
        }
        users
    }

    fn swaps(&self, proc: &Path) -> Vec<User> {
        let table = read(proc, "swaps").unwrap_or_default();
        table
            .lines()
            .skip(1)
            .filter_map(|line| Some(PathBuf::from(line.split_whitespace().next()?)))
            .filter(|path| self.paths.contains(path))
            .map(User::Swap)
            .collect()
    }

    fn loops(&self, sys: &Path) -> Vec<User> {
        block::disks(sys, "loop")
            .into_iter()
            .filter(|(_, disk)| backing_file(disk).is_some_and(|file| self.paths.contains(&file)))
            .map(|(_, disk)| User::Holder(disk.name().to_owned()))
            .collect()
    }

    /// A gadget's hold on its file shows in no process; configfs tells (`usb_f_mass_storage`).
    fn gadgets(&self, sys: &Path) -> Vec<User> {
        let mut users = Vec::new();
        for gadget in entries(&sys.join("kernel/config/usb_gadget")) {
            for function in entries(&gadget.join("functions")) {
                for lun in entries(&function) {
                    if read(&lun, "file").is_some_and(|file| self.paths.contains(Path::new(&file)))
                    {
                        users.push(User::UsbGadget {
                            gadget: last_part(&gadget),
                            lun: format!("{}/{}", last_part(&function), last_part(&lun)),
                        });
                    }
                }
            }
        }
        users
    }

    fn processes(&self, proc: &Path) -> Vec<User> {
        processes(proc)
            .filter(|(pid, _)| !self.own_processes.contains(pid))
            .filter(|(_, process)| entries(&process.join("fd")).any(|fd| self.is_open(&fd)))
            .map(|(pid, process)| User::Process {
                pid,
                name: read(&process, "comm").unwrap_or_default(),
            })
            .collect()
    }

    fn is_open(&self, descriptor: &Path) -> bool {
        let Ok(target) = fs::read_link(descriptor) else {
            return false;
        };
        if self.paths.contains(&target) {
            return true;
        }
        // The node may have another name (a container's /dev, a deleted node). Only what lies in some /dev is
        // looked at, and from the kernel's memory alone: a file on a dead network share would not answer.
        let bytes = target.as_os_str().as_bytes();
        bytes.windows(5).any(|part| part == b"/dev/")
            && device_behind(descriptor).is_some_and(|number| self.numbers.contains(&number))
    }
}

fn device_behind(descriptor: &Path) -> Option<DeviceNumber> {
    let facts = statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(facts.stx_mode.into());
    (kind == rustix::fs::FileType::BlockDevice)
        .then_some((facts.stx_rdev_major, facts.stx_rdev_minor))
}

fn processes(proc: &Path) -> impl Iterator<Item = (u32, PathBuf)> {
    entries(proc).filter_map(|entry| Some((entry.file_name()?.to_str()?.parse().ok()?, entry)))
}

fn last_part(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    fn tree() -> Tree {
        let tree = Tree::new();
        tree.file("sys/block/nbd0/dev", "43:0\n");
        tree.file("sys/block/nbd0/nbd0p1/dev", "43:1\n");
        tree.file("sys/block/nbd0/nbd0p1/partition", "1\n");
        tree
    }

    fn users(tree: &Tree) -> Vec<String> {
        let sys = tree.path().join("sys");
        let search = Search::of_disk(&Disk::under(&sys, "nbd0"), &[30, 31]);
        let users = search.run(&tree.path().join("proc"), &sys);
        users.iter().map(User::to_string).collect()
    }

    #[test]
    fn nobody_uses_an_idle_disk() {
        assert_eq!(users(&tree()), [""; 0]);
    }

    #[test]
    fn a_mounted_partition_counts_once_whoever_sees_it() {
        let tree = tree();
        let line = "1 2 43:1 / /mnt ro - ext4 /dev/nbd0p1 ro\n";
        for process in ["self", "10", "11"] {
            tree.file(&format!("proc/{process}/mountinfo"), line);
        }
        tree.link("proc/self/ns/mnt", "mnt:[1]");
        tree.link("proc/10/ns/mnt", "mnt:[1]");
        tree.link("proc/11/ns/mnt", "mnt:[2]");
        assert_eq!(users(&tree), ["mounted on /mnt"]);
    }

    #[test]
    fn a_mount_in_another_namespace_alone_counts() {
        let tree = tree();
        tree.file("proc/self/mountinfo", "");
        tree.link("proc/self/ns/mnt", "mnt:[1]");
        // btrfs has a device number of its own, so the source tells
        tree.file(
            "proc/12/mountinfo",
            "1 2 0:40 / /srv rw - btrfs /dev/nbd0 rw\n",
        );
        tree.link("proc/12/ns/mnt", "mnt:[2]");
        assert_eq!(users(&tree), ["mounted on /srv (as process 12 sees it)"]);
    }

    #[test]
    fn swap_holders_loops_and_gadgets_count() {
        let tree = tree();
        tree.file(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/nbd0p1 partition 1 0 -2\n",
        );
        tree.file("sys/block/nbd0/holders/dm-3/dev", "253:3\n");
        tree.file("sys/block/loop7/loop/backing_file", "/dev/nbd0\n");
        let function = "sys/kernel/config/usb_gadget/g1/functions/mass_storage.usb0";
        tree.file(&format!("{function}/lun.0/file"), "/dev/nbd0\n");
        tree.file(&format!("{function}/lun.1/file"), "/dev/nbd1\n");
        assert_eq!(
            users(&tree),
            [
                "swap on /dev/nbd0p1",
                "held by /dev/dm-3",
                "held by /dev/loop7",
                "the file of USB gadget g1's mass_storage.usb0/lun.0",
            ]
        );
    }

    #[test]
    fn an_open_descriptor_counts_but_those_of_our_own_processes_do_not() {
        let tree = tree();
        tree.link("proc/20/fd/3", "/dev/nbd0");
        tree.file("proc/20/comm", "dd\n");
        tree.link("proc/21/fd/3", "/dev/nbd10");
        tree.link("proc/30/fd/3", "/dev/nbd0");
        tree.link("proc/31/fd/3", "/dev/nbd0");
        assert_eq!(users(&tree), ["open in process 20 (dd)"]);
    }
}
