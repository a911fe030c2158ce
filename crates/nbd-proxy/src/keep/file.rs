//! A copy in a sparse file, which is deleted when the session ends, or at the next start of its configuration.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use nbd::Payload;
use rustix::fs::Advice;

use super::{Store, Subject, ground};
use crate::{
    config::{Keep, Place},
    paths, units,
};

/// This much stays free, in bytes: a full disk harms others.
const RESERVE: u64 = 64 << 20;
const SUFFIX: &str = "keep";
/// Of a session's ID, in hexadecimal digits.
const ID_LENGTH: usize = 32;

/// The name of a copy's file. When this is dropped the name goes; the bytes go with the last one who has it open.
#[derive(Debug)]
pub(super) struct Name(PathBuf);

impl Name {
    pub(super) fn new(directory: &Path, subject: &Subject) -> Self {
        let suffix = format!("{}.{SUFFIX}", subject.session);
        Self(paths::runtime_file(directory, &subject.name, &suffix))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // What stays is deleted at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// The file.
pub(super) struct FileStore {
    file: File,
    /// The keeper may be gone before the file was made.
    _name: Name,
}

impl FileStore {
    /// Makes the file, if there is room for all of the image.
    pub(super) fn open(directory: &Path, path: PathBuf, subject: &Subject) -> Result<Self, String> {
        let place = directory.display();
        let failed = |error: io::Error| {
            format!(
                "can't keep a copy in {place}: {error}; \"keep\" needs a directory that can be written to"
            )
        };
        ground::check(directory, &subject.device).map_err(failed)?;
        let room = rustix::fs::statvfs(directory).map_err(|error| failed(error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if subject.size.saturating_add(RESERVE) > free {
            return Err(format!(
                "{place} has {} free, and the image needs {} with {} to spare; make room",
                units::bytes(free),
                units::bytes(subject.size),
                units::bytes(RESERVE)
            ));
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let name = Name(path);
        file.set_len(subject.size).map_err(failed)?;
        Ok(Self { file, _name: name })
    }
}

impl Store for FileStore {
    fn write(&mut self, mut offset: u64, data: &Payload) -> io::Result<()> {
        for part in data.parts() {
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, length: u32) -> io::Result<Payload> {
        let mut data = BytesMut::zeroed(length as usize);
        self.file.read_exact_at(&mut data, offset)?;
        Ok(Payload::from(Bytes::from(data)))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // So that what is read back comes from the disk; where that can't be, it comes from memory.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }
}

/// Deletes what killed processes have left of this configuration; gives what was deleted.
pub(crate) fn remove_leftovers(keep: &Keep, name: &str) -> Vec<PathBuf> {
    let Place::Directory(directory) = &keep.place else {
        return Vec::new();
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| is_copy_of(path, directory, name) && fs::remove_file(path).is_ok())
        .collect()
}

/// Whether `path` is `NAME.SESSION.keep` in `directory`.
fn is_copy_of(path: &Path, directory: &Path, name: &str) -> bool {
    let is_id = |id: &&str| id.len() == ID_LENGTH && id.bytes().all(|b| b.is_ascii_hexdigit());
    let id = path
        .file_stem()
        .and_then(|stem| stem.to_str()?.rsplit_once('.'))
        .map(|(_, id)| id)
        .filter(is_id);
    id.is_some_and(|id| paths::runtime_file(directory, name, &format!("{id}.{SUFFIX}")) == path)
}
