//! What a directory stands on. A copy of an image on the device that shows the image would wait for itself.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nbd_kernel::{
    block::DeviceNumber,
    mounts::{self, Mount},
};

/// File systems on disks on file systems: deeper than this is a circle.
const DEEPEST: u32 = 8;
/// The file system that our FUSE devices are.
const OUR_FUSE: &str = "fuse.nbd-proxy";
/// What the backend identifier of our kernel devices begins with.
const OUR_BACKEND: &str = "nbd-proxy:";

/// Refuses a directory that stands on a device of ours: on `device`, or on one of any other session. May block.
pub(super) fn check(directory: &Path, device: &str) -> io::Result<()> {
    let ground = Ground {
        sys: PathBuf::from("/sys"),
        mounts: mounts::own(),
        device: PathBuf::from(device),
    };
    match ground.is_ours(directory, 0)? {
        true => Err(io::Error::other(
            "it is on a device that nbd-proxy serves; choose a directory on another disk",
        )),
        false => Ok(()),
    }
}

struct Ground {
    sys: PathBuf,
    mounts: Vec<Mount>,
    device: PathBuf,
}

impl Ground {
    fn is_ours(&self, path: &Path, depth: u32) -> io::Result<bool> {
        let number = fs::metadata(path)?.dev();
        let number = (rustix::fs::major(number), rustix::fs::minor(number));
        Ok(self.is_ours_by_number(number, depth))
    }

    fn is_ours_by_number(&self, number: DeviceNumber, depth: u32) -> bool {
        let mount = self.mounts.iter().find(|mount| mount.device == number);
        if mount.is_some_and(|mount| mount.kind == OUR_FUSE) {
            return true;
        }
        let (major, minor) = number;
        let disk = self.sys.join(format!("dev/block/{major}:{minor}"));
        // File systems such as btrfs have numbers of their own, but name the disk.
        let named = || {
            let source = mount?.source.canonicalize().ok()?;
            let name = source.strip_prefix("/dev").ok()?.file_name()?;
            Some(self.sys.join("class/block").join(name))
        };
        let disk = disk.canonicalize().ok();
        let disk = disk.or_else(|| named()?.canonicalize().ok());
        disk.is_some_and(|disk| self.is_ours_by_disk(&disk, depth))
    }

    /// `disk` is a directory of sysfs: of a whole disk or of a partition.
    fn is_ours_by_disk(&self, disk: &Path, depth: u32) -> bool {
        let disk = match disk.parent() {
            Some(whole) if disk.join("partition").exists() => whole,
            _ => disk,
        };
        if depth > DEEPEST {
            return false;
        }
        let attribute = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default();
        let is_device = disk.file_name() == self.device.file_name()
            && self.device.parent() == Some(Path::new("/dev"));
        if is_device || attribute("backend").starts_with(OUR_BACKEND) {
            return true;
        }
        let backing = attribute("loop/backing_file");
        let backing = Path::new(backing.trim_end_matches('\n'));
        let is_ours = |mount: &Mount| mount.kind == OUR_FUSE && mount.mount_point == backing;
        if self.mounts.iter().any(is_ours) {
            return true;
        }
        let below_loop =
            !backing.as_os_str().is_empty() && self.is_ours(backing, depth + 1).unwrap_or(false);
        let slaves = fs::read_dir(disk.join("slaves"))
            .into_iter()
            .flatten()
            .flatten();
        below_loop
            || slaves
                .filter_map(|slave| slave.path().canonicalize().ok())
                .any(|slave| self.is_ours_by_disk(&slave, depth + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose disks are directories: `write` makes an attribute.
    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("dev/block")).unwrap();
            Self { folder }
        }

        fn disk(&self, number: &str, path: &str) -> PathBuf {
            let disk = self.folder.path().join("devices").join(path);
            fs::create_dir_all(&disk).unwrap();
            let link = self.folder.path().join("dev/block").join(number);
            std::os::unix::fs::symlink(&disk, link).unwrap();
            disk
        }

        fn is_ours(&self, number: DeviceNumber, mounts: Vec<Mount>) -> bool {
            let ground = Ground {
                sys: self.folder.path().to_owned(),
                mounts,
                device: "/dev/nbd7".into(),
            };
            ground.is_ours_by_number(number, 0)
        }
    }

    #[test]
    fn a_partition_of_a_device_of_ours_is_found() {
        let machine = Machine::new();
        let disk = machine.disk("43:0", "nbd0");
        let partition = machine.disk("43:1", "nbd0/nbd0p1");
        fs::write(partition.join("partition"), "1\n").unwrap();
        assert!(!machine.is_ours((43, 1), Vec::new()), "somebody else's");
        fs::write(disk.join("backend"), "nbd-proxy:0:abc\n").unwrap();
        assert!(machine.is_ours((43, 1), Vec::new()));
    }

    #[test]
    fn the_session_s_own_device_is_found_without_a_backend() {
        let machine = Machine::new();
        machine.disk("43:7", "nbd7");
        machine.disk("8:0", "sda");
        assert!(machine.is_ours((43, 7), Vec::new()));
        assert!(!machine.is_ours((8, 0), Vec::new()));
    }

    #[test]
    fn a_disk_that_is_built_upon_a_device_of_ours_is_found() {
        let machine = Machine::new();
        let below = machine.disk("43:7", "nbd7");
        let mapped = machine.disk("253:0", "dm-0");
        fs::create_dir(mapped.join("slaves")).unwrap();
        std::os::unix::fs::symlink(below, mapped.join("slaves/nbd7")).unwrap();
        assert!(machine.is_ours((253, 0), Vec::new()));
    }

    #[test]
    fn a_loop_device_over_a_file_of_ours_is_found() {
        let machine = Machine::new();
        let disk = machine.disk("7:0", "loop0");
        fs::create_dir(disk.join("loop")).unwrap();
        fs::write(disk.join("loop/backing_file"), "/run/x/0.img\n").unwrap();
        let mount = |kind: &str| Mount {
            device: (0, 99),
            root: "/".into(),
            mount_point: "/run/x/0.img".into(),
            kind: kind.into(),
            source: "nbd-proxy".into(),
        };
        assert!(machine.is_ours((7, 0), vec![mount(OUR_FUSE)]));
        assert!(machine.is_ours((0, 99), vec![mount(OUR_FUSE)]));
        assert!(!machine.is_ours((7, 0), vec![mount("ext4")]));
    }

    #[test]
    fn an_ordinary_directory_is_none_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        check(folder.path(), "/dev/nbd7").unwrap();
    }
}
