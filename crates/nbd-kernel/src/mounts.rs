//! `/proc/*/mountinfo` (`Documentation/filesystems/proc.rst`, section 3.5).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::block::{DeviceNumber, parse_device_number};

/// One mount, as one mount namespace sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system's device number; for a file system upon a block device (most of them) the block device's.
    pub device: DeviceNumber,
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// `ext4`, `fuse.nbd-proxy`.
    pub kind: String,
    /// What was mounted: `/dev/nbd0`, or a name without meaning.
    pub source: PathBuf,
}

/// The mounts that this process sees.
pub fn own() -> Vec<Mount> {
    of(Path::new("/proc/self"))
}

/// The mounts that the process of that `/proc` directory sees; none where it ended or we may not look.
pub(crate) fn of(process: &Path) -> Vec<Mount> {
    let text = fs::read(process.join("mountinfo")).unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = parse_device_number(std::str::from_utf8(fields.nth(2)?).ok()?)?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    fields.find(|field| *field == b"-")?; // after the optional fields, whose number varies
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    Some(Mount {
        device,
        root,
        mount_point,
        kind,
        source,
    })
}

/// Spaces, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(first, tail) {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

fn octal(first: u8, tail: &[u8]) -> Option<u8> {
    if first != b'\\' {
        return None;
    }
    let digits = std::str::from_utf8(tail.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_and_without_optional_fields() {
        let plain = parse(b"36 35 43:0 / /mnt/a\\040b ro,relatime - iso9660 /dev/nbd0 ro").unwrap();
        assert_eq!(plain.device, (43, 0));
        assert_eq!(plain.mount_point, Path::new("/mnt/a b"));
        assert_eq!(plain.kind, "iso9660");
        assert_eq!(plain.source, Path::new("/dev/nbd0"));
        let shared =
            parse(b"36 35 0:51 /x /mnt rw shared:12 master:1 - fuse.nbd-proxy a\\134b rw").unwrap();
        assert_eq!(shared.root, Path::new("/x"));
        assert_eq!(shared.source, Path::new("a\\b"));
    }

    #[test]
    fn what_is_no_mount_is_skipped() {
        for line in [
            "",
            "1 2 3",
            "1 2 x:y / / rw - a b c",
            "1 2 0:1 / / rw shared:1",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn our_own_mounts_have_the_file_system_that_tells_them() {
        let at_proc = |mount: &Mount| mount.mount_point == Path::new("/proc");
        assert!(own().iter().any(at_proc));
    }
}
