//! What the helper does for its server, which may have been taken over: nothing but what the configuration needs, which
//! the helper has read itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use nbd_kernel::{Error, loopdev::Loop};

use super::Request;
#[cfg(feature = "fuse")]
use crate::device::{fuse, loopdev};
use crate::{
    config::{Config, Configuration},
    device::{DeviceSpec, kernel, socket},
    hook::{Hook, Subject},
    paths,
};

/// The longest word that a hook is told as its reason, in bytes.
const REASON: usize = 64;

/// What is allowed.
pub(super) struct Rules {
    configurations: Vec<Configuration>,
    runtime_dir: PathBuf,
}

impl Rules {
    pub(super) fn new(config: Config, runtime_dir: PathBuf) -> Self {
        Self {
            configurations: config.configurations,
            runtime_dir,
        }
    }

    /// The hook of a configuration, if what it is to be told can be true.
    pub(super) fn hook(
        &self,
        configuration: &str,
        subject: &Subject,
        reason: &str,
    ) -> Result<Hook, String> {
        let found = self
            .configurations
            .iter()
            .find(|one| one.name == configuration)
            .ok_or_else(|| format!("there is no configuration {configuration:?}"))?;
        if !self.may_be_at(found, &subject.device) {
            return Err(format!(
                "{:?} is no device of configuration {configuration:?}, so its hook is not run",
                subject.device
            ));
        }
        if reason.len() > REASON
            || reason
                .chars()
                .any(|c| !(c.is_ascii_alphanumeric() || c == '-'))
        {
            return Err("a reason is one word, so the hook is not run".into());
        }
        Ok(Hook::of(found))
    }

    /// The file that says that `stop` of a configuration's hook is owed.
    pub(super) fn state_file(&self, configuration: &str) -> PathBuf {
        paths::runtime_file(&self.runtime_dir, configuration, "state")
    }

    /// Whether a device of that configuration can have that path.
    fn may_be_at(&self, configuration: &Configuration, path: &str) -> bool {
        let (name, spec) = (&configuration.name, &configuration.device);
        let numbered = |prefix| path.strip_prefix(prefix).is_some_and(is_number);
        let socket_at =
            |given| path == socket::unix_path(given, name, &self.runtime_dir).to_string_lossy();
        match spec {
            // A record that can't be read tells nothing; `stop` runs all the same.
            _ if path.is_empty() => true,
            DeviceSpec::Kernel { index: Some(index) } => path == format!("/dev/nbd{index}"),
            DeviceSpec::Kernel { index: None } => numbered("/dev/nbd"),
            DeviceSpec::Loop => numbered("/dev/loop"),
            DeviceSpec::Fuse { .. } => self.is_fuse_file(configuration, Path::new(path)),
            DeviceSpec::Unix { path: given } => socket_at(given.as_deref()),
            DeviceSpec::Tcp { .. } => path.parse::<std::net::SocketAddr>().is_ok(),
            DeviceSpec::Auto => {
                numbered("/dev/nbd")
                    || numbered("/dev/loop")
                    || self.is_fuse_file(configuration, Path::new(path))
                    || socket_at(None)
            }
        }
    }

    /// Whether a piece of work is one that the configuration needs.
    pub(super) fn check(&self, request: &Request) -> Result<(), Error> {
        let allowed = match request {
            Request::UsersOfDisk { disk } | Request::FirstRead { disk } => ["nbd", "loop"]
                .iter()
                .any(|kind| disk.strip_prefix(kind).is_some_and(is_number)),
            Request::LoadNbd => self.any(|one| one.device.may_be_kernel()),
            Request::PrepareLoop => self.any(|one| one.device.may_be_loop()),
            Request::Mount { path, others: true } => self.any(|one| self.is_fuse_file(one, path)),
            Request::UsersOfFile { path } | Request::Mount { path, .. } => self.is_file(path),
            Request::Unmount { path } => {
                nbd_kernel::fuse::is_mounted(path) && (self.is_file(path) || self.is_leftover(path))
            }
            Request::AttachLoop { path } => {
                self.any(|one| self.is_loop_file(one, path)) && nbd_kernel::fuse::is_mounted(path)
            }
            // One whose file was unmounted before is not found by it any more, and not detached.
            Request::DetachLoop { index } => Loop::new(*index)
                .backing_file()
                .is_some_and(|file| self.is_file(&file) || self.is_leftover(&file)),
            Request::Disconnect { index } => kernel::is_leftover(*index),
        };
        allowed.then_some(()).ok_or_else(|| Error::Io {
            action: "do what no configuration needs".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        })
    }

    /// Whether it is a FUSE file of a configuration.
    fn is_file(&self, path: &Path) -> bool {
        self.any(|one| self.is_fuse_file(one, path) || self.is_loop_file(one, path))
    }

    /// Whether it is where FUSE files are, of configurations that there may be no more.
    fn is_leftover(&self, path: &Path) -> bool {
        let runtime_dir = self.runtime_dir.canonicalize().unwrap_or_default();
        let Ok(inside) = path.strip_prefix(runtime_dir) else {
            return false;
        };
        let parts: Vec<_> = inside.iter().map(Path::new).collect();
        let ends_with = |part: &Path, suffix| part.extension().is_some_and(|one| one == suffix);
        match parts[..] {
            [file] => ends_with(file, "img"),
            [directory, file] => ends_with(directory, "loop") && file == Path::new("image"),
            _ => false,
        }
    }

    fn any(&self, accepts: impl Fn(&Configuration) -> bool) -> bool {
        self.configurations.iter().any(accepts)
    }
}

#[cfg(feature = "fuse")]
impl Rules {
    fn is_fuse_file(&self, configuration: &Configuration, path: &Path) -> bool {
        let given = match &configuration.device {
            DeviceSpec::Fuse { path } => path.as_deref(),
            DeviceSpec::Auto => None,
            _ => return false,
        };
        fuse::file_path(given, &configuration.name, &self.runtime_dir)
            .is_ok_and(|file| file == path)
    }

    fn is_loop_file(&self, configuration: &Configuration, path: &Path) -> bool {
        configuration.device.may_be_loop()
            && loopdev::file_path(&configuration.name, &self.runtime_dir)
                .is_ok_and(|file| file == path)
    }
}

#[cfg(not(feature = "fuse"))]
impl Rules {
    fn is_fuse_file(&self, _: &Configuration, _: &Path) -> bool {
        false
    }

    fn is_loop_file(&self, _: &Configuration, _: &Path) -> bool {
        false
    }
}

/// As the kernel writes the numbers of its devices.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 7 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(device: &str) -> (tempfile::TempDir, Rules) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let text = serde_json::json!({ "configurations": { "0": { "device": device } } });
        std::fs::write(&file, text.to_string()).unwrap();
        let (config, _) = Config::load(&file, crate::config::Strictness::Strict).unwrap();
        let runtime_dir = folder.path().canonicalize().unwrap();
        (folder, Rules::new(config, runtime_dir))
    }

    fn may(rules: &Rules, request: &Request) -> bool {
        rules.check(request).is_ok()
    }

    fn subject(device: impl Into<String>) -> Subject {
        Subject {
            device: device.into(),
            ..Subject::default()
        }
    }

    #[test]
    fn a_hook_is_that_of_the_configuration_and_is_told_of_its_device() {
        let (_folder, rules) = rules("/dev/nbd3");
        let hook = rules.hook("0", &subject("/dev/nbd3"), "closed").unwrap();
        assert_eq!(hook.path, Path::new("/etc/nbd-proxy/state"));
        assert!(rules.hook("1", &subject("/dev/nbd3"), "closed").is_err());
        assert!(rules.hook("0", &subject("/dev/nbd3"), "a; b").is_err());
        for device in ["/dev/nbd4", "/dev/sda", "/dev/nbd3/../sda", "/dev/nbd3x"] {
            assert!(
                rules.hook("0", &subject(device), "closed").is_err(),
                "{device}"
            );
        }
    }

    #[test]
    fn a_device_without_a_number_has_one_all_the_same() {
        let (_folder, rules) = rules("nbd:");
        assert!(rules.hook("0", &subject("/dev/nbd12"), "closed").is_ok());
        assert!(rules.hook("0", &subject("/dev/nbd"), "closed").is_err());
        assert!(rules.hook("0", &subject("/dev/loop1"), "closed").is_err());
    }

    #[test]
    #[cfg(feature = "fuse")]
    fn only_files_of_the_configuration_are_mounted() {
        let (folder, rules) = rules("fuse:");
        let folder = folder.path().canonicalize().unwrap();
        let mount = |path: PathBuf, others| may(&rules, &Request::Mount { path, others });
        assert!(mount(folder.join("0.img"), true));
        assert!(!mount(folder.join("1.img"), true));
        assert!(!mount("/etc/passwd".into(), false));
        assert!(!mount(folder.join("0.loop/image"), false));
    }

    #[test]
    #[cfg(feature = "fuse")]
    fn the_file_beneath_a_loop_device_is_never_shown_to_others() {
        let (folder, rules) = rules("loop:");
        let path = folder.path().canonicalize().unwrap().join("0.loop/image");
        let mount = |others| Request::Mount {
            path: path.clone(),
            others,
        };
        assert!(may(&rules, &mount(false)) && !may(&rules, &mount(true)));
        // Nothing is mounted there: it might be a link to anything.
        assert!(!may(&rules, &Request::AttachLoop { path }));
    }

    #[test]
    fn a_socket_needs_no_driver_and_no_disk_is_looked_at_but_ours() {
        let (_folder, rules) = rules("unix:");
        for driver in [Request::LoadNbd, Request::PrepareLoop] {
            assert!(!may(&rules, &driver));
        }
        let read = |disk: &str| may(&rules, &Request::FirstRead { disk: disk.into() });
        assert!(read("nbd0"));
        assert!(!read("sda") && !read("nbd/../sda") && !read("nbd"));
        assert!(!may(&rules, &Request::DetachLoop { index: 0 }));
    }
}
