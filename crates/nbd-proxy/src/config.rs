//! `config.json`: what configurations there are, and how each is attached.

mod access;
mod audit;
mod duplicates;
mod keep;
mod lenient;
mod limits;
mod reader;
mod serve;
mod tls;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};

use crate::device::{AttachMode, DeviceSpec};
use access::Allow;
#[cfg(feature = "serve")]
pub(crate) use access::{Access, LOCAL, Right, TrustedProxies, check_name};
#[cfg(feature = "serve")]
pub(crate) use audit::Destination;
pub(crate) use keep::{Keep, Place};
#[cfg(feature = "serve")]
#[cfg(feature = "serve")]
pub(crate) use limits::{LEAST_MEMORY, ServeLimits};
use reader::{Reader, Section};
#[cfg(feature = "serve")]
pub(crate) use serve::Doubt;
pub(crate) use serve::ServeConfig;
pub(crate) use tls::TlsFiles;

/// How much is forgiven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// For `serve`: JSON to the letter, and an unknown key is an error.
    Strict,
    /// For the stdin/stdout form, as the prototype's parser was: comments and trailing commas pass, an unknown key is
    /// a warning.
    Lenient,
}

/// Why a configuration cannot be used. Names the file or the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("can't read the configuration {}: {source}; choose another file with --config", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The file says what cannot be.
    #[error("{}: {message}", path.display())]
    Meaning {
        /// Which.
        path: PathBuf,
        /// What.
        message: String,
    },
    /// The command line asks for a configuration that there is not.
    #[error("{0}")]
    Choice(String),
}

/// A whole file.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// How long one request may stay unanswered on a live link.
    pub(crate) timeout: Duration,
    /// In the file's order.
    pub(crate) configurations: Vec<Configuration>,
    /// For `serve`; not even looked at in the stdin/stdout form.
    pub(crate) serve: ServeConfig,
}

/// One named place where an image can be attached.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    /// Its name; any text.
    pub(crate) name: String,
    /// Whether it is taken when none is named.
    pub(crate) default: bool,
    /// What the machine gets.
    pub(crate) device: DeviceSpec,
    /// Passed on untouched, in the file's order of keys.
    pub(crate) metadata: Option<Map<String, Value>>,
    /// How long a session is kept without a link; zero: not at all.
    pub(crate) hold: Duration,
    /// How long the peer of a link may be silent before the link counts as lost.
    pub(crate) silence: Duration,
    /// Whether and where a copy of the image is made.
    pub(crate) keep: Option<Keep>,
    /// Bytes asked for in one request, if not the form's own limit: 4 KiB to 32 MiB, whole sectors.
    pub(crate) max_request: Option<u32>,
    /// Bytes of replies outstanding at once, if not the form's own limit.
    pub(crate) max_in_flight: Option<u64>,
    /// Bytes of a read-only image in memory, if not the form's own limit; 0: none.
    pub(crate) cache: Option<u64>,
    /// How a kernel device is attached.
    pub(crate) attach: AttachMode,
    /// What the hook is told that the device is.
    pub(crate) media: Media,
    /// The program to run at start and stop.
    pub(crate) state_hook: PathBuf,
    /// How long it may take.
    pub(crate) hook_timeout: Duration,
    /// Who may do what with it.
    pub(crate) allow: Allow,
}

/// What a device is presented as, by those who set up something on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Media {
    /// A disk.
    #[default]
    Disk,
    /// A CD-ROM.
    Cdrom,
}

impl Media {
    /// The word of the configuration and of `NBD_PROXY_MEDIA`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Cdrom => "cdrom",
        }
    }
}

const TIMEOUT: Duration = Duration::from_secs(30);
const HOLD: Duration = Duration::from_secs(300);
const SILENCE: Duration = Duration::from_secs(15);
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// `R/control.sock` is where the server itself is asked.
const CONTROL: &str = "control";
const STATE_HOOK: &str = "/etc/nbd-proxy/state";
/// The smallest and the largest request that a configuration may ask for. 32 MiB is what servers take unless they
/// say otherwise (proto.md, "Block size constraints").
const REQUEST_SIZES: std::ops::RangeInclusive<u64> = 4096..=32 << 20;

impl Config {
    /// Reads a file. The second part are warnings, for people.
    pub(crate) fn load(
        path: &Path,
        strictness: Strictness,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_path_buf(),
            source,
        })?;
        Self::parse(path, text, strictness)
    }

    /// Reads the text of a file, whose path is for messages.
    pub(crate) fn parse(
        path: &Path,
        text: String,
        strictness: Strictness,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let text = match strictness {
            Strictness::Strict => text,
            Strictness::Lenient => lenient::to_json(&text),
        };
        let parsed = duplicates::parse(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_path_buf(),
            source,
        })?;
        let (value, twice) = parsed;
        let mut reader = Reader::new(strictness);
        for key in twice {
            reader
                .forgive(format!("\"{key}\" stands twice; keep one"))
                .map_err(|message| ConfigError::Meaning {
                    path: path.to_path_buf(),
                    message,
                })?;
        }
        let config = Self::read(&value, &mut reader).map_err(|message| ConfigError::Meaning {
            path: path.to_path_buf(),
            message,
        })?;
        Ok((config, reader.into_warnings()))
    }

    /// What `serve` does without a file: one configuration, `"0"`, with device `auto`.
    #[cfg(feature = "serve")]
    pub(crate) fn built_in() -> Self {
        let configuration = Configuration {
            name: "0".into(),
            default: true,
            device: DeviceSpec::Auto,
            metadata: None,
            hold: HOLD,
            silence: SILENCE,
            keep: None,
            max_request: None,
            max_in_flight: None,
            cache: None,
            attach: AttachMode::default(),
            media: Media::default(),
            state_hook: STATE_HOOK.into(),
            hook_timeout: HOOK_TIMEOUT,
            allow: Allow::default(),
        };
        Self {
            timeout: TIMEOUT,
            configurations: vec![configuration],
            serve: ServeConfig::default(),
        }
    }

    /// The configuration of that name, or the default one.
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<&Configuration, ConfigError> {
        let names = || {
            let names: Vec<_> = self
                .configurations
                .iter()
                .map(|one| format!("{:?}", one.name))
                .collect();
            names.join(", ")
        };
        match name {
            Some(name) => self
                .configurations
                .iter()
                .find(|one| one.name == name)
                .ok_or_else(|| {
                    ConfigError::Choice(format!(
                        "there is no configuration {name:?}; there is {}",
                        names()
                    ))
                }),
            None => self
                .configurations
                .iter()
                .find(|one| one.default)
                .ok_or_else(|| {
                    ConfigError::Choice(format!(
                        "no configuration is marked \"default\": true; name one of {}",
                        names()
                    ))
                }),
        }
    }

    /// `{name: metadata or null}`.
    pub(crate) fn metadata(&self) -> Value {
        let entry = |one: &Configuration| {
            (
                one.name.clone(),
                one.metadata.clone().map_or(Value::Null, Value::Object),
            )
        };
        Value::Object(self.configurations.iter().map(entry).collect())
    }

    fn read(value: &Value, reader: &mut Reader) -> Result<Self, String> {
        let mut file = reader.section("", value)?;
        let timeout = match file.seconds("timeout")? {
            Some(Duration::ZERO) => reader::LONGEST,
            given => given.unwrap_or(TIMEOUT),
        };
        let configurations = match file.take("configurations") {
            Some(value) => read_configurations(file.reader(), value)?,
            None => return Err("there is no \"configurations\"".into()),
        };
        let serve = match (file.take("serve"), file.reader().strictness()) {
            (Some(value), Strictness::Strict) => ServeConfig::read(file.reader(), value)?,
            _ => ServeConfig::default(),
        };
        file.finish()?;
        Ok(Self {
            timeout,
            configurations,
            serve,
        })
    }
}

fn read_configurations(reader: &mut Reader, value: &Value) -> Result<Vec<Configuration>, String> {
    let Value::Object(entries) = value else {
        return Err("\"configurations\" is not an object".into());
    };
    let mut configurations = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        configurations.push(Configuration::read(reader, name, value)?);
    }
    let defaults: Vec<_> = configurations
        .iter()
        .filter(|one| one.default)
        .map(|one| &one.name)
        .collect();
    if let [first, second, ..] = defaults[..] {
        return Err(format!(
            "both {first:?} and {second:?} are marked as the default configuration"
        ));
    }
    match &mut configurations[..] {
        [] => Err("\"configurations\" is empty".into()),
        [sole] => {
            sole.default = true;
            Ok(configurations)
        }
        _ => Ok(configurations),
    }
}

impl Configuration {
    fn read(reader: &mut Reader, name: &str, value: &Value) -> Result<Self, String> {
        let mut section = reader.section(&format!("configurations.{name}"), value)?;
        let configuration = Self {
            name: name.into(),
            default: section.boolean("default")?.unwrap_or(false),
            device: read_device(&mut section)?,
            metadata: section.object("metadata")?,
            hold: section.seconds("hold")?.unwrap_or(HOLD),
            silence: read_silence(&mut section)?,
            keep: keep::read(&mut section)?,
            max_request: read_max_request(&mut section)?,
            max_in_flight: section.integer("max-in-flight")?,
            cache: section.integer("cache")?,
            attach: section
                .word(
                    "attach",
                    &[
                        ("netlink", AttachMode::Netlink),
                        ("ioctl", AttachMode::Ioctl),
                    ],
                )?
                .unwrap_or_default(),
            media: section
                .word("media", &[("disk", Media::Disk), ("cdrom", Media::Cdrom)])?
                .unwrap_or_default(),
            state_hook: section.text("state-hook")?.unwrap_or(STATE_HOOK).into(),
            hook_timeout: section.seconds("hook-timeout")?.unwrap_or(HOOK_TIMEOUT),
            allow: Allow::read(&mut section)?,
        };
        check_socket(name, &configuration.device)
            .map_err(|message| section.about("device", &message))?;
        section.finish()?;
        Ok(configuration)
    }
}

/// In R there is one socket already that is not a device.
fn check_socket(name: &str, device: &DeviceSpec) -> Result<(), String> {
    let in_runtime_dir = matches!(device, DeviceSpec::Unix { path: None } | DeviceSpec::Auto);
    if in_runtime_dir && name == CONTROL {
        return Err(format!(
            "is {device}, whose socket would be that of nbd-proxy status and eject; give it a place of its own, \
             unix:PATH, or the configuration another name"
        ));
    }
    Ok(())
}

fn read_device(section: &mut Section<'_, '_>) -> Result<DeviceSpec, String> {
    let text = match (section.text("device")?, section.text("nbd-device")?) {
        (Some(_), Some(_)) => {
            return Err(section.about(
                "device",
                "stands beside \"nbd-device\", its old name; keep one",
            ));
        }
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => {
            let misspelt = ["device", "nbd-device"].map(|key| section.misspelt(key));
            let remedy = match misspelt.into_iter().flatten().next() {
                Some(key) => format!("is missing; {key:?} may have been meant to be it"),
                None => "is missing; \"auto\" takes what works here".to_owned(),
            };
            return Err(section.about("device", &remedy));
        }
    };
    let device = parse_device(text).map_err(|message| section.about("device", &message))?;
    let tls = tls::read(section)?;
    secure(device, tls).map_err(|(key, message)| section.about(key, &message))
}

/// Sees to it that nothing can be read or changed on the way. An error comes with its key.
fn secure(device: DeviceSpec, tls: Option<TlsFiles>) -> Result<DeviceSpec, (&'static str, String)> {
    match (device, tls) {
        (DeviceSpec::Tcp { address, .. }, tls) => match &tls {
            _ if address.ip().to_canonical().is_loopback() => Ok(DeviceSpec::Tcp { address, tls }),
            None => Err((
                "device",
                format!(
                    "tcp:{address} can be reached from other machines, so it needs \"tls\" with \"certificate\", \
                     \"key\" and \"client-ca\" beside it; or use a loopback address or unix:PATH"
                ),
            )),
            Some(files) if files.client_ca.is_none() => Err((
                "tls",
                format!(
                    "has no \"client-ca\", and tcp:{address} can be reached from other machines: name the authority of \
                     the clients' certificates, since NBD has no other way to tell who may read"
                ),
            )),
            Some(_) => Ok(DeviceSpec::Tcp { address, tls }),
        },
        (device, None) => Ok(device),
        (device, Some(_)) => Err((
            "tls",
            format!("is for tcp:ADDR:PORT, and \"device\" is {device}; leave it out"),
        )),
    }
}

/// Parses the value of `device`.
fn parse_device(text: &str) -> Result<DeviceSpec, String> {
    let optional = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
    if let Some(number) = text
        .strip_prefix("/dev/nbd")
        .filter(|rest| !rest.is_empty())
    {
        let canonical = number
            .parse()
            .ok()
            .filter(|index: &u32| index.to_string() == number);
        return match canonical {
            Some(index) => Ok(DeviceSpec::Kernel { index: Some(index) }),
            None => Err(format!(
                "{text:?} is not a whole NBD device such as /dev/nbd0"
            )),
        };
    }
    match text.split_once(':') {
        Some(("nbd", "")) => Ok(DeviceSpec::Kernel { index: None }),
        Some(("loop", "")) => Ok(DeviceSpec::Loop),
        Some(("fuse", path)) => Ok(DeviceSpec::Fuse {
            path: optional(path),
        }),
        Some(("unix", path)) => Ok(DeviceSpec::Unix {
            path: optional(path),
        }),
        Some(("tcp", address)) => parse_tcp(address),
        None if text == "auto" => Ok(DeviceSpec::Auto),
        _ => Err(format!(
            "{text:?} is none of /dev/nbdN, nbd:, loop:, fuse:PATH, unix:PATH, tcp:ADDR:PORT, auto"
        )),
    }
}

fn parse_tcp(text: &str) -> Result<DeviceSpec, String> {
    text.parse()
        .map(|address| DeviceSpec::Tcp { address, tls: None })
        .map_err(|_| format!("{text:?} is not an address with a port, such as 127.0.0.1:10809"))
}

fn read_silence(section: &mut Section<'_, '_>) -> Result<Duration, String> {
    match section.seconds("silence")? {
        Some(Duration::ZERO) => Err(section.about("silence", "must be at least 1 second")),
        given => Ok(given.unwrap_or(SILENCE)),
    }
}

fn read_max_request(section: &mut Section<'_, '_>) -> Result<Option<u32>, String> {
    let Some(bytes) = section.integer("max-request")? else {
        return Ok(None);
    };
    match u32::try_from(bytes) {
        Ok(size) if REQUEST_SIZES.contains(&bytes) && size % 512 == 0 => Ok(Some(size)),
        _ => Err(section.about(
            "max-request",
            "must be 4096 to 33554432 bytes, and a multiple of 512",
        )),
    }
}

#[cfg(test)]
mod tests;
