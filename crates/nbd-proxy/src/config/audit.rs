//! `audit`: where the audit trail goes.

use std::{fmt, path::PathBuf};

use super::reader::Section;

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Nowhere.
    Off,
    /// To standard error, a line each.
    StandardError,
    /// To systemd's journal.
    Journal,
    /// To a file that is appended to.
    File(PathBuf),
}

/// For people.
impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("no place"),
            Self::StandardError => formatter.write_str("standard error"),
            Self::Journal => formatter.write_str("journald"),
            Self::File(path) => path.display().fmt(formatter),
        }
    }
}

/// Reads `audit`; `None` where nothing is said.
pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Option<Destination>, String> {
    match section.text("audit")? {
        None => Ok(None),
        Some("off") => Ok(Some(Destination::Off)),
        Some("stderr") => Ok(Some(Destination::StandardError)),
        Some("journald") => Ok(Some(Destination::Journal)),
        Some(path) if path.starts_with('/') => Ok(Some(Destination::File(path.into()))),
        Some(text) => Err(section.about(
            "audit",
            &format!("is {text:?}; it must be \"off\", \"stderr\", \"journald\", or the absolute path of a file"),
        )),
    }
}
