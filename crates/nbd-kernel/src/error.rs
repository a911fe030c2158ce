//! One error type: what was tried, and why the machine refused.

use std::io;
use std::path::Path;

/// Why a Linux interface did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, to follow "cannot".
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's NBD driver is neither built in nor loaded.
    #[error("the kernel's NBD driver is not loaded")]
    NoNbdDriver,
    /// There is no such NBD device; the module's parameter `nbds_max` says how many there are.
    #[error("there is no /dev/nbd{index}")]
    NoDevice {
        /// The number that was asked for.
        index: u32,
    },
    /// The device is attached already, or still held open from an earlier attachment.
    #[error("/dev/nbd{index} is in use by somebody else{}", .by.as_deref().unwrap_or_default())]
    Busy {
        /// The device's number.
        index: u32,
        /// Who that is, where it is known: begins with ": ".
        by: Option<String>,
    },
    /// A size that the interface can't express.
    #[error("a device of {size} bytes in blocks of {block_size} is not possible here")]
    Size {
        /// Bytes.
        size: u64,
        /// Bytes.
        block_size: u32,
    },
    /// The kernel sent something that does not follow its own format.
    #[error("the kernel's answer makes no sense: {0}")]
    Malformed(&'static str),
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the reason is a missing privilege (EPERM or EACCES).
    pub fn is_permission(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the reason is that this machine lacks the thing: a device node, a driver, a program.
    pub fn is_absent(&self) -> bool {
        let Error::Io { source, .. } = self else {
            return matches!(self, Error::NoNbdDriver | Error::NoDevice { .. });
        };
        matches!(
            source.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
        )
    }
}

/// `.doing("open a socket")` on the result of a system call.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl Into<String>) -> Result<T>;
    fn doing_to(self, verb: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|e| Error::Io {
            action: action.into(),
            source: e.into(),
        })
    }

    fn doing_to(self, verb: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io {
            action: format!("{verb} {}", path.as_ref().display()),
            source: e.into(),
        })
    }
}
