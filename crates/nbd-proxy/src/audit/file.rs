//! A file that grows by a line for each event.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::writer::{Entry, Sink};

/// A file that is appended to. Where another one is put in its place, or it is moved away, as logrotate does, the next
/// event goes to the place and not to the old file.
#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    file: File,
    /// A line was written in part alone.
    torn: bool,
}

impl AuditFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open(path)?,
            path: path.into(),
            torn: false,
        })
    }

    fn follow(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let is_ours = |there: &Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if fs::symlink_metadata(&self.path).is_ok_and(|there| is_ours(&there)) {
            return Ok(());
        }
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }
}

impl Sink for AuditFile {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn keep(&mut self, entry: &Entry) -> io::Result<()> {
        self.follow()?;
        let start = if self.torn { "\n" } else { "" };
        let text = format!("{start}{}\n", entry.line);
        // In one call, so that lines of two servers with one file do not mix.
        let written = self.file.write(text.as_bytes())?;
        self.torn = written < text.len();
        if self.torn {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// Its owner's alone if it is made now. A symbolic link, a pipe or a device at its place is nothing that we would write
/// to: who can put one there could have us write elsewhere, or wait.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()))
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(file)
}
