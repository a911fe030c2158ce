//! The image: a file or a block device, read where it lies.

use std::{
    fs::File,
    io::{ErrorKind, Seek as _, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use nbd::{
    BlockSizes, Command, Export, Extent, Failure, Payload, Reply,
    wire::{Errno, ExtentFlags, TransmissionFlags},
};
use nbd_kernel::reading::read_at;
use nbd_session::ImageInfo;
use rustix::fs::{SeekFrom as Sparse, fstatfs};

/// The largest request that we answer, bytes: what clients assume unless told (proto.md, "Size constraints").
const MAXIMUM_REQUEST: u32 = 32 << 20;
/// The longest piece of an answer, bytes. Each is a message of its own, so that the machine has the first of them while
/// the last are still on a slow line.
pub(super) const PIECE: usize = 256 << 10;
/// Longer reads than this are left to a thread, bytes: a server asks for as much at a time.
const AT_ONCE: u32 = 4 << 20;
/// The most extents in one answer: a client asks again for the rest.
const EXTENTS: usize = 1024;
/// The file system that is memory itself, and knows no `RWF_NOWAIT` (linux/magic.h, `TMPFS_MAGIC`).
const TMPFS: u32 = 0x0102_1994;

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    path: PathBuf,
    info: ImageInfo,
    /// Of a regular file; reading from one that was written to since would mix two images into one.
    version: Option<Version>,
    /// Its file system is memory itself.
    is_memory: bool,
    /// The run of data that was found last. To find its end, a file system in memory looks at each page of it, and the
    /// next question is about the same run.
    data: Mutex<Range<u64>>,
}

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: (i64, i64),
}

impl Image {
    /// Opens a file or a block device. `name` replaces the file's own.
    pub(super) fn open(path: &Path, name: Option<String>) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("can't open {shown}"))?;
        let metadata = file
            .metadata()
            .with_context(|| format!("can't look at {shown}"))?;
        let kind = metadata.file_type();
        let (size, version) = if kind.is_file() {
            (metadata.len(), Some(version(&file)?))
        } else if kind.is_block_device() {
            (
                file.seek(SeekFrom::End(0))
                    .with_context(|| format!("can't tell how large {shown} is"))?,
                None,
            )
        } else {
            bail!("{shown} is neither a file nor a block device");
        };
        if size == 0 {
            bail!("{shown} is empty: there is nothing to attach");
        }
        let own_name = || {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let info = ImageInfo {
            name: name.or_else(own_name).unwrap_or_else(|| shown.to_string()),
            size,
            modified: version
                .map(|version| version.modified.0 * 1000 + version.modified.1 / 1_000_000),
        };
        Ok(Self {
            is_memory: is_memory(&file),
            file,
            path: path.to_owned(),
            info,
            version,
            data: Mutex::default(),
        })
    }

    /// Opens it anew, perhaps after days. None: it is another by now.
    pub(super) fn reopen(&self) -> anyhow::Result<Option<Self>> {
        let now = Self::open(&self.path, Some(self.info.name.clone()))?;
        let same = now.version == self.version && now.info.size == self.info.size;
        Ok(same.then_some(now))
    }

    /// As it is announced.
    pub(super) fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// As NBD offers it.
    pub(super) fn export(&self) -> Export {
        Export {
            name: self.info.name.clone(),
            description: None,
            size: self.info.size,
            flags: TransmissionFlags::HAS_FLAGS
                | TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_CACHE
                | TransmissionFlags::CAN_MULTI_CONN,
            block_sizes: Some(BlockSizes {
                maximum: MAXIMUM_REQUEST,
                ..BlockSizes::default()
            }),
        }
    }

    /// Carries out a request that lies within the image. Blocks.
    pub(super) fn carry_out(&self, command: &Command) -> Result<Reply, Failure> {
        match *command {
            Command::Read { offset, length } => self.read(offset, length).map(Reply::Data),
            Command::BlockStatus { offset, length } => {
                Ok(Reply::BlockStatus(self.extents(offset, length)))
            }
            Command::Cache { .. } | Command::Flush => Ok(Reply::Done),
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => Err(
                Failure::new(Errno::EPERM, "the image is shared for reading only"),
            ),
        }
    }

    fn read(&self, offset: u64, length: u32) -> Result<Payload, Failure> {
        let mut data = Payload::new();
        for (at, length) in pieces(offset, length) {
            let mut piece = vec![0; length];
            self.file
                .read_exact_at(&mut piece, at)
                .map_err(|error| match error.kind() {
                    ErrorKind::UnexpectedEof => {
                        self.failure("has become shorter since it was opened")
                    }
                    _ => self.failure(&format!("can't be read: {error}")),
                })?;
            data.push(piece.into());
        }
        // Afterwards: whatever was written before or meanwhile shows.
        if self.is_unchanged() {
            Ok(data)
        } else {
            Err(self.failure("was changed since it was opened; share it anew"))
        }
    }

    /// Answers a READ without blocking, if the kernel has the bytes in memory: to wake a thread and be woken by it costs
    /// more than to copy them. None: [`Self::carry_out`] knows more.
    pub(super) fn answer_now(&self, command: &Command) -> Option<Reply> {
        let &Command::Read { offset, length } = command else {
            return None;
        };
        if length > AT_ONCE {
            return None;
        }
        let mut data = Payload::new();
        for (at, length) in pieces(offset, length) {
            data.push(self.read_now(at, length)?);
        }
        self.is_unchanged().then_some(Reply::Data(data))
    }

    fn read_now(&self, offset: u64, length: usize) -> Option<Bytes> {
        let piece = read_at(&self.file, offset, length, self.is_memory).ok()?;
        (piece.len() == length).then(|| piece.into())
    }

    fn is_unchanged(&self) -> bool {
        let is_that = |opened: Version| version(&self.file).is_ok_and(|now| now == opened);
        self.version.is_none_or(is_that)
    }

    fn failure(&self, cause: &str) -> Failure {
        Failure::new(Errno::EIO, format!("{} {cause}", self.path.display()))
    }

    /// Data and holes from `offset` on: as many as fit one answer, at least one. Where the file system can't tell, it
    /// is all data.
    fn extents(&self, offset: u64, length: u32) -> Vec<Extent> {
        let end = offset + u64::from(length);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < EXTENTS {
            let (next, flags) = self.extent_at(at, end);
            let next = next.clamp(at + 1, end);
            let length = u32::try_from(next - at).unwrap_or(length);
            extents.push(Extent { length, flags });
            at = next;
        }
        extents
    }

    /// Where the data or the hole at `at` ends, and which it is (lseek(2)).
    fn extent_at(&self, at: u64, end: u64) -> (u64, ExtentFlags) {
        let data = ExtentFlags::empty();
        let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
        let mut known = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&at) {
            return (known.end, data);
        }
        match rustix::fs::seek(&self.file, Sparse::Data(at)) {
            Ok(start) if start > at => (start, hole),
            Ok(_) => {
                *known = at..rustix::fs::seek(&self.file, Sparse::Hole(at)).unwrap_or(end);
                (known.end, data)
            }
            Err(rustix::io::Errno::NXIO) if self.version.is_some() => (end, hole),
            Err(_) => (end, data),
        }
    }
}

/// Where the pieces of an answer begin, and their lengths.
fn pieces(offset: u64, length: u32) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + u64::from(length);
    (offset..end).step_by(PIECE).map(move |at| {
        let left = usize::try_from(end - at).unwrap_or(PIECE);
        (at, left.min(PIECE))
    })
}

fn is_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| u32::try_from(system.f_type) == Ok(TMPFS))
}

fn version(file: &File) -> anyhow::Result<Version> {
    let metadata = file.metadata()?;
    Ok(Version {
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn read(image: &Image, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        match image.carry_out(&Command::Read { offset, length })? {
            Reply::Data(data) => Ok(data.to_bytes().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_range_is_read() {
        let (_folder, path) = file(b"0123456789");
        let image = Image::open(&path, None).unwrap();
        assert_eq!(
            (image.info().name.as_str(), image.info().size),
            ("disk.img", 10)
        );
        assert_eq!(read(&image, 3, 7).unwrap(), b"3456789");
        assert_eq!(
            Image::open(&path, Some("other".into()))
                .unwrap()
                .info()
                .name,
            "other"
        );
    }

    #[test]
    fn what_is_in_memory_is_answered_at_once_and_the_same() {
        let (_folder, path) = file(&[7; 100_000]);
        let image = Image::open(&path, None).unwrap();
        let ask = |offset, length| image.answer_now(&Command::Read { offset, length });
        // Not every file system can tell.
        if let Some(answer) = ask(5000, 4096) {
            assert_eq!(
                answer,
                Reply::Data(Payload::from(Bytes::from(vec![7; 4096])))
            );
        }
        assert_eq!(ask(0, AT_ONCE + 1), None);
        assert_eq!(ask(99_000, 2000), None);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"more")
            .unwrap();
        assert_eq!(ask(5000, 4096), None);
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_reason() {
        let (folder, path) = file(b"");
        for (path, word) in [
            (path.as_path(), "empty"),
            (folder.path(), "neither"),
            (Path::new("/nonexistent"), "can't open"),
        ] {
            let error = Image::open(path, None).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_file_that_was_cut_off_gives_eio_and_says_so() {
        let (_folder, path) = file(&[7; 4096]);
        let image = Image::open(&path, None).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1000)
            .unwrap();
        let failure = read(&image, 2048, 512).unwrap_err();
        assert_eq!(failure.errno, Errno::EIO);
        assert!(failure.message.contains("shorter"), "{failure}");
    }

    #[test]
    fn a_file_that_was_written_to_gives_eio_and_says_so() {
        let (_folder, path) = file(&[7; 4096]);
        let image = Image::open(&path, None).unwrap();
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"more")
            .unwrap();
        let failure = read(&image, 0, 512).unwrap_err();
        assert_eq!(failure.errno, Errno::EIO);
        assert!(failure.message.contains("changed"), "{failure}");
    }

    #[test]
    fn what_is_opened_anew_is_the_same_or_none() {
        let (_folder, path) = file(&[7; 4096]);
        let image = Image::open(&path, Some("other".into())).unwrap();
        let again = image.reopen().unwrap().unwrap();
        assert_eq!(again.info(), image.info());
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"more")
            .unwrap();
        assert!(image.reopen().unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(image.reopen().is_err());
    }

    #[test]
    fn a_file_that_was_deleted_is_served_to_its_end() {
        let (_folder, path) = file(b"0123456789");
        let image = Image::open(&path, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&image, 0, 10).unwrap(), b"0123456789");
    }

    #[test]
    fn extents_cover_the_range_and_tell_holes() {
        const MIB: u64 = 1 << 20;
        let (_folder, path) = file(b"");
        let sparse = File::options().write(true).open(&path).unwrap();
        sparse.set_len(4 * MIB).unwrap();
        sparse.write_all_at(&[1; 4096], MIB).unwrap();
        let image = Image::open(&path, None).unwrap();
        let Ok(Reply::BlockStatus(extents)) = image.carry_out(&Command::BlockStatus {
            offset: 512,
            length: 3 << 20,
        }) else {
            panic!("no extents")
        };
        assert_eq!(
            extents
                .iter()
                .map(|extent| u64::from(extent.length))
                .sum::<u64>(),
            3 * MIB
        );
        let data: u64 = extents
            .iter()
            .filter(|extent| extent.flags.is_empty())
            .map(|extent| u64::from(extent.length))
            .sum();
        assert!((4096..=3 * MIB).contains(&data));
    }

    #[test]
    fn what_was_asked_before_changes_no_answer() {
        const STEP: u64 = 64 << 10;
        let (_folder, path) = file(b"");
        let sparse = File::options().write(true).open(&path).unwrap();
        sparse.set_len(16 * STEP).unwrap();
        for start in [3, 4, 5, 9] {
            sparse.write_all_at(&[1; 64 << 10], start * STEP).unwrap();
        }
        let asked = Image::open(&path, None).unwrap();
        for start in (0..16).chain((0..16).rev()) {
            for offset in [start * STEP, start * STEP + STEP / 2] {
                let fresh = Image::open(&path, None).unwrap();
                let length = u32::try_from(16 * STEP - offset).unwrap();
                assert_eq!(
                    asked.extents(offset, length),
                    fresh.extents(offset, length),
                    "from {offset} on"
                );
            }
        }
    }
}
