//! The place of a Unix socket: a name in a folder that nobody else can change, and a file that is ours.

use std::{
    fs::{self, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, RenameFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::{getegid, geteuid},
};

use super::super::DeviceError;
use crate::report;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// The longest path of a Unix socket, in bytes (`unix(7)`: 108 with its NUL).
const MAX_PATH: usize = 107;
/// Only the owner of a file can remove or rename it (`inode(7)`).
const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// Removes a socket of ours at `path` on which nobody listens, and says whether there was one. Anything else there is
/// somebody's, and stays.
pub(super) fn make_way(path: &Path) -> Result<bool, DeviceError> {
    let shown = path.display();
    check_folders(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(DeviceError::io(format!("look at {shown}"))(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(DeviceError::Refused(format!(
                "{shown} exists and is not a socket; remove it or choose another path"
            )));
        }
        Ok(found) if found.uid() != geteuid().as_raw() => {
            return Err(DeviceError::Refused(format!(
                "{shown} is a socket of another user (UID {}); remove it or choose another path",
                found.uid()
            )));
        }
        Ok(_) => {}
    }
    if is_listening(path).map_err(DeviceError::io(format!("connect to {shown}")))? {
        return Err(DeviceError::InUse {
            device: shown.to_string(),
            users: vec!["another process listens on it".into()],
        });
    }
    fs::remove_file(path).map_err(DeviceError::io(format!("remove the old socket {shown}")))?;
    Ok(true)
}

/// Refuses a path where another user could put something else in place of the socket, or of a folder on the way to it.
fn check_folders(path: &Path) -> Result<(), DeviceError> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    let real = match fs::canonicalize(folder) {
        Ok(real) => real,
        // What fails here fails with a better sentence when the socket is made.
        Err(_) => return Ok(()),
    };
    let changeable = folder
        .ancestors()
        .chain(real.ancestors())
        .filter_map(|part| Some((part, fs::symlink_metadata(part).ok()?)))
        .find_map(|(part, found)| Some((part, why_changeable(&found)?)));
    match changeable {
        None => Ok(()),
        Some((part, why)) => Err(DeviceError::Refused(format!(
            "{} {why}, who could replace the socket {}; choose a folder that only its owner can change",
            part.display(),
            path.display()
        ))),
    }
}

/// Why others can change what a folder, or a link to one, holds.
fn why_changeable(found: &Metadata) -> Option<String> {
    changeable(
        found.uid(),
        found.gid(),
        // What a link says is changed by its folder alone.
        if found.is_symlink() { 0 } else { found.mode() },
        (geteuid().as_raw(), getegid().as_raw()),
    )
}

fn changeable(
    owner: u32,
    group: u32,
    mode: u32,
    (user, users_group): (u32, u32),
) -> Option<String> {
    let is_sticky = mode & STICKY != 0;
    let by = |permission| mode & permission != 0 && !is_sticky;
    if owner != 0 && owner != user {
        Some(format!("belongs to another user (UID {owner})"))
    } else if by(OTHERS_WRITE) {
        Some("can be changed by everybody".into())
    } else if by(GROUP_WRITES) && group != 0 && group != users_group {
        Some(format!("can be changed by others (GID {group})"))
    } else {
        None
    }
}

/// Whether a process listens on the socket at `path`.
fn is_listening(path: &Path) -> io::Result<bool> {
    // Without waiting for room in its queue.
    let connected = rustix::net::connect(&unix_socket()?, &SocketAddrUnix::new(path)?);
    Ok(connected != Err(Errno::CONNREFUSED))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// A listening socket whose file appears at `path` ready to be connected to, by its owner alone.
pub(super) fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile), DeviceError> {
    let failed = || DeviceError::io(format!("listen on unix:{}", path.display()));
    let Some(name) = path.file_name() else {
        return Err(DeviceError::Refused(format!(
            "{} names no file",
            path.display()
        )));
    };
    let part = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    if part.as_os_str().len() > MAX_PATH {
        let most = MAX_PATH + path.as_os_str().len() - part.as_os_str().len();
        return Err(DeviceError::Refused(format!(
            "the path {} is too long for a socket; choose one of at most {most} bytes",
            path.display()
        )));
    }
    // One of ours by its name: of a process that was killed on the way, and whose number we have got.
    let _ = fs::remove_file(&part);
    let socket = bind(&part).map_err(failed())?;
    let placed = put_in_place(&socket, &part, path).map_err(failed());
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed.map(|file| (socket.into(), file))
}

fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    // On Linux the file gets the mode that the socket has, less the umask, so that it is never open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn put_in_place(socket: &OwnedFd, part: &Path, path: &Path) -> io::Result<SocketFile> {
    rustix::net::listen(socket, BACKLOG)?;
    let file = SocketFile::at(part, path)?;
    // Without replacing: what came to be there since we looked is not ours.
    rustix::fs::renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE)?;
    Ok(file)
}

/// The file of a Unix socket, told from another of the same name.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file now at `part`, soon at `path`.
    fn at(part: &Path, path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(part)?;
        Ok(Self {
            path: path.into(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Removes it, unless something else has taken its name.
    pub(super) fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            report::warning(format_args!(
                "can't remove the socket {}: {error}",
                self.path.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: (u32, u32) = (1000, 1000);

    #[test]
    fn a_folder_is_safe_when_only_root_and_we_can_change_it() {
        for (owner, group, mode) in [
            (0, 0, 0o40755),
            (1000, 1000, 0o40700),
            // A group of our own, as many systems give to each user.
            (1000, 1000, 0o42775),
            // Where nobody can remove what another made, such as /tmp.
            (0, 0, 0o41777),
        ] {
            assert_eq!(changeable(owner, group, mode, US), None, "{mode:o}");
        }
    }

    #[test]
    fn a_folder_of_another_user_or_that_others_can_change_is_not() {
        for (owner, group, mode) in [
            (1001, 1001, 0o40700),
            (1001, 0, 0o41777),
            (0, 0, 0o40777),
            (1000, 27, 0o40775),
        ] {
            assert!(changeable(owner, group, mode, US).is_some(), "{mode:o}");
        }
    }

    #[test]
    fn a_link_in_the_path_counts_as_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        let refusal = check_folders(&link.join("0.sock")).unwrap_err().to_string();
        assert!(
            refusal.contains("open can be changed by everybody"),
            "{refusal}"
        );
        assert!(check_folders(&folder.path().join("0.sock")).is_ok());
    }
}
