//! Small files of secrets: nobody else may change them, nor anybody read them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The longest such file that is read, bytes.
const LIMIT: u64 = 4 << 20;
/// What a file must not allow: writing by its group, anything by others.
const TOO_OPEN: u32 = 0o027;
/// What a file that we replace may go on allowing.
const KEPT: u32 = 0o640;
const OWN: u32 = 0o600;

/// Why a file is not taken, or could not be written. Names it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateFileError {
    /// The system says so.
    #[error("can't read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could have written it, or read it.
    #[error(
        "{} is open to others than its owner (mode {mode:o}); close it with chmod 600, and consider its secrets known",
        path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, who is neither root nor the user that we run as", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
    },
    /// A directory, a device, or far too long.
    #[error("{} is not a file of at most {LIMIT} bytes", path.display())]
    Strange {
        /// Which.
        path: PathBuf,
    },
    /// There is no room, or no permission.
    #[error("can't write {}: {source}", path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The content of `path`; None where there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, PrivateFileError> {
    let unreadable = |source| PrivateFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Without it, opening a pipe waits for who writes to it.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    check(path, &file.metadata().map_err(unreadable)?)?;
    let mut content = Vec::new();
    file.take(LIMIT)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    Ok(Some(content))
}

fn check(path: &Path, metadata: &fs::Metadata) -> Result<(), PrivateFileError> {
    let path = path.to_owned();
    let owner = metadata.uid();
    let mode = metadata.mode() & 0o777;
    match () {
        () if !metadata.is_file() || metadata.len() > LIMIT => {
            Err(PrivateFileError::Strange { path })
        }
        () if owner != 0 && owner != rustix::process::geteuid().as_raw() => {
            Err(PrivateFileError::Foreign { path, owner })
        }
        () if mode & TOO_OPEN != 0 => Err(PrivateFileError::Open { path, mode }),
        () => Ok(()),
    }
}

/// Replaces `path` by `content`: whoever reads finds the old or the new one, whole. A new file is its owner's alone; one
/// that was there keeps its owner and its group, so that a server that runs as another user finds it readable still.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), PrivateFileError> {
    replace(path, content).map_err(|source| PrivateFileError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let part = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    // Of a process of the same number that was killed here.
    let _ = fs::remove_file(&part);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWN)
        .open(&part)?;
    fill(file, path, content)
        .and_then(|()| fs::rename(&part, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })
}

fn fill(mut file: File, path: &Path, content: &[u8]) -> io::Result<()> {
    if let Ok(before) = fs::metadata(path) {
        let ours = file.metadata()?;
        if (before.uid(), before.gid()) != (ours.uid(), ours.gid()) {
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(before.mode() & KEPT | OWN))?;
    }
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_written_is_its_owners_alone_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        assert!(read(&path).unwrap().is_none());
        for content in ["one", "two"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), content.as_bytes());
            assert_eq!(mode(&path), 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_group_that_could_read_still_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        write(&path, b"one").unwrap();
        set_mode(&path, 0o640);
        write(&path, b"two").unwrap();
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn a_file_that_others_can_change_or_read_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        write(&path, b"one").unwrap();
        for mode in [0o602, 0o604, 0o620, 0o666] {
            set_mode(&path, mode);
            let error = read(&path).unwrap_err();
            assert!(matches!(error, PrivateFileError::Open { .. }), "{error}");
        }
    }

    #[test]
    fn a_pipe_or_a_directory_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(folder.path()),
            Err(PrivateFileError::Strange { .. })
        ));
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(read(&pipe), Err(PrivateFileError::Strange { .. })));
    }
}
