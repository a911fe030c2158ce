//! Where things are: the configuration file, and the runtime directory R with what belongs to one configuration.

#[cfg(feature = "serve")]
use std::os::unix::fs::MetadataExt as _;
use std::{
    fmt::Write,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// Of a directory's mode: its group, or anybody, may make and remove what is in it.
#[cfg(feature = "serve")]
const OTHERS_WRITE: u32 = 0o022;
const CONFIGURATION_FILE: &str = "/etc/nbd-proxy/config.json";

/// The configuration file: as given, else `$NBD_PROXY_CONFIG`, else the system's.
pub(crate) fn config_file(given: Option<&Path>) -> PathBuf {
    given
        .map(Path::to_path_buf)
        .or_else(|| {
            std::env::var_os("NBD_PROXY_CONFIG")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        })
        .unwrap_or_else(|| PathBuf::from(CONFIGURATION_FILE))
}

/// R, made if need be.
pub(crate) fn runtime_dir() -> anyhow::Result<PathBuf> {
    let directory = locate_runtime_dir()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&directory)
        .with_context(|| {
            format!(
                "can't make the runtime directory {}; set RUNTIME_DIRECTORY to one that can be made",
                directory.display()
            )
        })?;
    Ok(directory)
}

/// Where R is or would be: `$RUNTIME_DIRECTORY`, `/run/nbd-proxy` for root, or `$XDG_RUNTIME_DIR/nbd-proxy`.
pub(crate) fn locate_runtime_dir() -> anyhow::Result<PathBuf> {
    if let Some(list) = variable("RUNTIME_DIRECTORY") {
        return Ok(first_of(&list));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/run/nbd-proxy"));
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(directory) => Ok(Path::new(&directory).join("nbd-proxy")),
        None => bail!("no place for runtime files: set RUNTIME_DIRECTORY to a directory of yours"),
    }
}

/// Where the server keeps what outlives it, made if need be and closed to others: as configured, else
/// `$STATE_DIRECTORY`, `/var/lib/nbd-proxy` for root, or `nbd-proxy` in `$XDG_STATE_HOME`. One that others can change is
/// refused: they could have us show a key of theirs.
#[cfg(feature = "serve")]
pub(crate) fn state_dir(configured: Option<&Path>) -> anyhow::Result<PathBuf> {
    let directory = match configured {
        Some(directory) => directory.to_path_buf(),
        None => locate_state_dir()?,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| {
            format!(
                "can't make the state directory {}; choose one that can be made with \"state-dir\" in \"serve\"",
                directory.display()
            )
        })?;
    let found = fs::metadata(&directory)
        .with_context(|| format!("can't look at {}", directory.display()))?;
    let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    if !is_ours || found.mode() & OTHERS_WRITE != 0 {
        bail!(
            "the state directory {0} can be changed by others (UID {1}, mode {2:o}); make it ours with chown and chmod 700, \
             or choose another with \"state-dir\" in \"serve\"",
            directory.display(),
            found.uid(),
            found.mode() & 0o7777
        );
    }
    Ok(directory)
}

#[cfg(feature = "serve")]
fn locate_state_dir() -> anyhow::Result<PathBuf> {
    if let Some(list) = variable("STATE_DIRECTORY") {
        return Ok(first_of(&list));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/nbd-proxy"));
    }
    // The XDG base directory specification's own default.
    let home = || variable("HOME").map(|home| Path::new(&home).join(".local/state"));
    match variable("XDG_STATE_HOME").map(PathBuf::from).or_else(home) {
        Some(directory) => Ok(directory.join("nbd-proxy")),
        None => bail!("no place for the server's state: set \"state-dir\" in \"serve\""),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// systemd gives all directories of the unit, separated by colons (systemd.exec(5)).
fn first_of(list: &str) -> PathBuf {
    PathBuf::from(list.split(':').next().unwrap_or(list))
}

/// `R/NAME.SUFFIX` for any name that a configuration may have: bytes that a file name should not have, and a leading
/// dot, become `%XX`.
pub(crate) fn runtime_file(runtime_dir: &Path, name: &str, suffix: &str) -> PathBuf {
    let mut file = String::new();
    for (position, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => file.push(char::from(byte)),
            b'.' if position > 0 => file.push('.'),
            _ => {
                let _ = write!(file, "%{byte:02X}");
            }
        }
    }
    runtime_dir.join(format!("{file}.{suffix}"))
}

/// The names of the configurations that have a `R/NAME.SUFFIX`, in no order.
#[cfg(feature = "serve")]
pub(crate) fn runtime_names(runtime_dir: &Path, suffix: &str) -> Vec<String> {
    let entries = fs::read_dir(runtime_dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.path();
            let name = decode(path.file_stem()?.to_str()?)?;
            (runtime_file(runtime_dir, &name, suffix) == path).then_some(name)
        })
        .collect()
}

/// A name, as [`runtime_file`] wrote it.
#[cfg(feature = "serve")]
fn decode(file: &str) -> Option<String> {
    let mut parts = file.split('%');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        name.push(u8::from_str_radix(digits, 16).ok()?);
        name.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "serve")]
    #[test]
    fn a_state_directory_that_others_can_change_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = || state_dir(Some(&path));
        assert_eq!(state().unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        for mode in [0o777, 0o1777, 0o770] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = state().unwrap_err().to_string();
            assert!(refused.contains("can be changed by others"), "{refused}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(state().is_ok());
    }

    #[test]
    fn a_name_never_leaves_the_runtime_directory() {
        let file = |name| runtime_file(Path::new("/r"), name, "sock");
        assert_eq!(file("0"), Path::new("/r/0.sock"));
        assert_eq!(file("lab-2.b"), Path::new("/r/lab-2.b.sock"));
        assert_eq!(file("../etc/x"), Path::new("/r/%2E.%2Fetc%2Fx.sock"));
    }

    #[test]
    fn different_names_have_different_files() {
        let file = |name| runtime_file(Path::new("/r"), name, "lock");
        assert_ne!(file("a/b"), file("a%2Fb"));
    }

    #[test]
    #[cfg(feature = "serve")]
    fn the_names_in_the_runtime_directory_are_those_that_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["0", "a/b", "a%2Fb", ".x", "Büro 3"];
        for name in names {
            fs::write(runtime_file(folder.path(), name, "lock"), "").unwrap();
        }
        for other in [
            "b.state",
            "c%.lock",
            "d%zz.lock",
            "e%ff.lock",
            ".c.sock.lock",
        ] {
            fs::write(folder.path().join(other), "").unwrap();
        }
        let mut found = runtime_names(folder.path(), "lock");
        found.sort_unstable();
        assert_eq!(found, [".x", "0", "Büro 3", "a%2Fb", "a/b"]);
    }
}
