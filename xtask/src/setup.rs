//! Installing what the tests need: Debian packages, npm packages, Python packages, cargo's tools.

use std::path::{Path, PathBuf};

use crate::command::{Failure, command, line, output, root, run, target_directory};
use crate::debian;

/// The oldest Node.js with the test runner and the `Blob` of files that the tests use.
const NODE_VERSION: u32 = 20;

/// Programs of crates.io that are installed when absent. Debug builds: they take half the
/// time to compile, and what they do here is short.
const CARGO_TOOLS: [&str; 2] = ["cargo-deny", "cargo-fuzz"];

/// Installs everything that is missing.
pub(crate) fn everything() -> Result<(), Failure> {
    debian::packages()?;
    npm_packages()?;
    python_packages()?;
    cargo_tools()
}

/// Whether a version of Node.js is new enough.
pub(crate) fn is_recent_node(version: &str) -> bool {
    let major = version.trim_start_matches('v').split('.').next();
    major.and_then(|number| number.parse().ok()) >= Some(NODE_VERSION)
}

fn npm_packages() -> Result<(), Failure> {
    let node = output(&mut line("node --version"));
    if !is_recent_node(&node) {
        return Err(format!(
            "Node.js {NODE_VERSION} or newer is missing (https://nodejs.org has it), found {:?}",
            node.trim()
        ));
    }
    // npm writes the inner file last; it is as old as what is installed.
    let installed = modified("node_modules/.package-lock.json");
    if installed.is_some() && installed >= modified("package-lock.json") {
        println!("All npm packages are there.");
        return Ok(());
    }
    run(&mut line("npm ci --no-audit --no-fund"))
}

/// Where the Python packages are that Debian lacks: a virtual environment of Debian's interpreter.
pub(crate) fn python_environment() -> PathBuf {
    target_directory().join("python")
}

fn python_packages() -> Result<(), Failure> {
    let wanted = root().join("tests/api/requirements.txt");
    let environment = python_environment();
    // A copy of what was installed.
    let installed = environment.join("requirements.txt");
    let text = |path: &Path| std::fs::read_to_string(path).ok();
    if text(&installed).is_some() && text(&installed) == text(&wanted) {
        println!("All Python packages are there.");
        return Ok(());
    }
    run(line("/usr/bin/python3 -m venv --clear").arg(&environment))?;
    let pip = environment.join("bin/pip");
    run(command(
        &pip.to_string_lossy(),
        ["install", "--quiet", "--requirement"],
    )
    .arg(&wanted))?;
    std::fs::copy(&wanted, &installed)
        .map(drop)
        .map_err(|error| format!("{}: {error}", installed.display()))
}

fn modified(path: &str) -> Option<std::time::SystemTime> {
    root().join(path).metadata().ok()?.modified().ok()
}

fn cargo_tools() -> Result<(), Failure> {
    for tool in CARGO_TOOLS {
        let subcommand = tool.trim_start_matches("cargo-");
        if output(&mut command("cargo", [subcommand, "--version"])).is_empty() {
            run(&mut command(
                "cargo",
                ["install", "--quiet", "--locked", "--debug", tool],
            ))?;
        } else {
            println!("{tool} is there.");
        }
    }
    Ok(())
}
