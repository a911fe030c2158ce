//! `cargo xtask man`: manual pages, and completions for shells; `cargo xtask deb`: the Debian package with them.

use std::path::PathBuf;

use crate::command::{Failure, command, line, run, target_directory};

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

/// Makes the Debian package of a release build, and gives the directory that has it.
pub(crate) fn package() -> Result<PathBuf, Failure> {
    run(&mut line("cargo build --quiet --release -p nbd-proxy"))?;
    let manual = write()?;
    let program = target_directory().join("release/nbd-proxy");
    let output = target_directory().join("debian");
    run(&mut command(
        "packaging/debian/build",
        [&program, &manual, &output],
    ))?;
    Ok(output)
}
