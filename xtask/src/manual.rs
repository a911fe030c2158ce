//! `cargo xtask man`: manual pages, and completions for shells.

use std::path::PathBuf;

use crate::command::{Failure, line, run, target_directory};

/// Writes them, and gives the directory that has them in `man` and `completions`.
pub(crate) fn write() -> Result<PathBuf, Failure> {
    let directory = target_directory().join("manual");
    // What an older definition had is not what this one has.
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    run(line("cargo run --quiet -p nbd-proxy --example manual --").arg(&directory))?;
    Ok(directory)
}
