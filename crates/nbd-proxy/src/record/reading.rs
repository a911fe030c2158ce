//! What the process before us has noted.

use std::path::{Path, PathBuf};

use super::{Record, VERSION, Versioned, path};
use crate::private_file::{self, PrivateFileError};

/// Why a record is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// It can't be read, or others could have written it.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// It is not one, or not one of ours.
    #[error("{} is damaged: {cause}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// Its writer was older or newer.
    #[error("{} was written by another version of nbd-proxy", .0.display())]
    Foreign(PathBuf),
}

/// Reads what was noted of configuration `name`; `None` where nothing was.
pub(crate) fn read(runtime_dir: &Path, name: &str) -> Result<Option<Record>, RecordError> {
    let path = path(runtime_dir, name);
    let Some(text) = private_file::read(&path)? else {
        return Ok(None);
    };
    match serde_json::from_slice::<Versioned<serde::de::IgnoredAny>>(&text) {
        Ok(found) if found.version != VERSION => return Err(RecordError::Foreign(path)),
        Ok(_) => {}
        Err(cause) => return Err(RecordError::Damaged { path, cause }),
    }
    match serde_json::from_slice::<Versioned<Record>>(&text) {
        Ok(found) => Ok(Some(found.session)),
        Err(cause) => Err(RecordError::Damaged { path, cause }),
    }
}
