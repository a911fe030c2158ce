//! What lies outside of R: where a configuration has its socket and its copies. It is noted when a server takes the
//! configuration, so that the next one can clean up where the configuration is no more, or lies elsewhere by then.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{ClaimError, file_error, write_private};
use crate::{
    config::{Config, Configuration, Keep, Place},
    device::{self, DeviceSpec},
    keep, paths, private_file, report,
};

/// Of the note's file.
const SUFFIX: &str = "places";

/// Where something of a configuration may be left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Places {
    /// A socket that `unix:PATH` names.
    socket: Option<PathBuf>,
    /// The directory of copies.
    copies: Option<PathBuf>,
}

impl Places {
    fn of(configuration: &Configuration) -> Self {
        let socket = match &configuration.device {
            DeviceSpec::Unix { path } => path.as_deref(),
            _ => None,
        };
        let copies = match &configuration.keep {
            Some(Keep {
                place: Place::Directory(directory),
                ..
            }) => Some(directory.as_path()),
            _ => None,
        };
        let absolute = |path: &Path| std::path::absolute(path).ok();
        Self {
            socket: socket.and_then(absolute),
            copies: copies.and_then(absolute),
        }
    }
}

fn note_of(runtime_dir: &Path, name: &str) -> PathBuf {
    paths::runtime_file(runtime_dir, name, SUFFIX)
}

/// Notes where this configuration, which is claimed, may leave something.
pub(super) fn note(configuration: &Configuration, runtime_dir: &Path) -> Result<(), ClaimError> {
    let path = note_of(runtime_dir, &configuration.name);
    let places = Places::of(configuration);
    let noted = match places == Places::default() {
        true => forget(&path),
        false => serde_json::to_vec(&places)
            .map_err(io::Error::from)
            .and_then(|text| write_private(&path, &text)),
    };
    noted.map_err(file_error(&path))
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what killed servers have left where `config` puts nothing any more, and says so. Only what is noted in a file
/// of ours, of a configuration that no process claims: dead sockets of our user, and copies by their names. Blocks, and
/// comes before the server gives up the right to write there.
pub(crate) fn clean_up_elsewhere(config: &Config, runtime_dir: &Path) {
    for name in paths::runtime_names(runtime_dir, SUFFIX) {
        let path = note_of(runtime_dir, &name);
        let Some(_lock) = claimed(&paths::runtime_file(runtime_dir, &name, "lock")) else {
            continue;
        };
        for one in clean_up(config, &name, &path).unwrap_or_else(|error| vec![error]) {
            report::warning(format_args!("left of configuration {name:?}: {one}"));
        }
    }
}

/// The lock of a configuration, unless another process has it.
fn claimed(path: &Path) -> Option<File> {
    let lock = File::options().read(true).write(true).open(path).ok()?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}

/// What was done, in words.
fn clean_up(config: &Config, name: &str, path: &Path) -> Result<Vec<String>, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let Some(note) = private_file::read(path).map_err(|error| words(&error))? else {
        return Ok(Vec::new());
    };
    // What another version wrote differently is left alone.
    let noted: Places = serde_json::from_slice(&note).map_err(|error| words(&error))?;
    let now: Vec<Places> = config.configurations.iter().map(Places::of).collect();
    let own = config.configurations.iter().find(|one| one.name == name);
    let own = own.map(Places::of).unwrap_or_default();
    let mut freed = Vec::new();
    let is_used = |socket: &PathBuf| now.iter().any(|one| one.socket.as_ref() == Some(socket));
    if let Some(socket) = noted.socket.filter(|socket| !is_used(socket)) {
        freed.extend(device::remove_dead_socket(&socket).map_err(|error| words(&error))?);
    }
    if let Some(directory) = noted.copies.filter(|one| own.copies.as_ref() != Some(one)) {
        let keep = Keep {
            place: Place::Directory(directory),
            limit: None,
        };
        let deleted = keep::remove_leftovers(&keep, name);
        freed.extend(
            deleted
                .iter()
                .map(|copy| format!("{} is deleted", copy.display())),
        );
    }
    forget(path).map_err(|error| words(&error))?;
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::Strictness;

    fn config(folder: &Path, configurations: &str) -> Config {
        let text = format!(r#"{{"configurations": {{{configurations}}}}}"#);
        let text = text.replace("FOLDER", &folder.display().to_string());
        Config::parse(Path::new("config.json"), text, Strictness::Strict)
            .unwrap()
            .0
    }

    /// What a killed server leaves whose configuration `"gone"` had a socket and a copy outside of R.
    fn left(folder: &Path) -> [PathBuf; 2] {
        let gone = config(
            folder,
            r#""gone": {"device": "unix:FOLDER/gone.sock", "keep": "FOLDER"}"#,
        );
        fs::write(paths::runtime_file(folder, "gone", "lock"), "").unwrap();
        note(&gone.configurations[0], folder).unwrap();
        let copy = folder.join(format!("gone.{}.keep", "0".repeat(32)));
        fs::write(&copy, "bytes").unwrap();
        let socket = folder.join("gone.sock");
        drop(UnixListener::bind(&socket).unwrap());
        [socket, copy]
    }

    const OTHER: &str = r#""0": {"device": "auto"}"#;

    #[test]
    fn sockets_and_copies_of_a_configuration_that_is_no_more_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let left = left(folder.path());
        fs::write(folder.path().join("gone.notes.keep"), "precious").unwrap();
        clean_up_elsewhere(&config(folder.path(), OTHER), folder.path());
        assert!(left.iter().all(|path| !path.exists()));
        assert!(folder.path().join("gone.notes.keep").exists());
        assert!(paths::runtime_names(folder.path(), SUFFIX).is_empty());
    }

    #[test]
    fn what_is_claimed_or_used_or_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let left = left(folder.path());
        let same = r#""new": {"device": "unix:FOLDER/gone.sock"}, "gone": {"device": "auto", "keep": "FOLDER"}"#;
        let lock = claimed(&paths::runtime_file(folder.path(), "gone", "lock")).unwrap();
        clean_up_elsewhere(&config(folder.path(), OTHER), folder.path());
        assert!(left.iter().all(|path| path.exists()), "claimed");
        drop(lock);
        clean_up_elsewhere(&config(folder.path(), same), folder.path());
        assert!(left.iter().all(|path| path.exists()), "used");
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [socket, _] = left(folder.path());
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "precious").unwrap();
        clean_up_elsewhere(&config(folder.path(), OTHER), folder.path());
        assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    }
}
