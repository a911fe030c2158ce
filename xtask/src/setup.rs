//! Installing what the tests need: Debian packages, npm packages, Python packages, cargo's tools.

use std::path::{Path, PathBuf};

use crate::command::{Failure, command, line, output, root, run, target_directory};

const DEBIAN_PACKAGES: &str = include_str!("../debian-packages.txt");

/// The oldest Node.js with the test runner and the `Blob` of files that the tests use.
const NODE_VERSION: u32 = 20;

/// Programs of crates.io that are installed when absent. Debug builds: they take half the
/// time to compile, and what they do here is short.
const CARGO_TOOLS: [&str; 2] = ["cargo-deny", "cargo-fuzz"];

/// Installs everything that is missing.
pub(crate) fn everything() -> Result<(), Failure> {
    debian_packages()?;
    npm_packages()?;
    python_packages()?;
    cargo_tools()
}

fn debian_packages() -> Result<(), Failure> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        println!("Not a Debian system: install the likes of xtask/debian-packages.txt by hand.");
        return Ok(());
    }
    let missing = missing_debian_packages();
    if missing.is_empty() {
        println!("All Debian packages are there.");
        return Ok(());
    }
    if output(&mut line("id -u")).trim() != "0" {
        return Err(format!(
            "Debian packages are missing, and only root can install them:\n  \
             sudo apt-get install --no-install-recommends {}",
            missing.join(" ")
        ));
    }
    run(&mut line("apt-get update --quiet"))?;
    run(
        line("apt-get install --quiet --yes --no-install-recommends --allow-downgrades")
            .args(with_one_qemu(missing))
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn missing_debian_packages() -> Vec<String> {
    let listing = output(&mut command(
        "dpkg-query",
        ["-W", "-f", "${Package} ${db:Status-Status}\n"],
    ));
    let installed = |name: &str| {
        listing
            .lines()
            .any(|line| line == format!("{name} installed"))
    };
    DEBIAN_PACKAGES
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !installed(line))
        .map(str::to_owned)
        .collect()
}

/// Packages of QEMU conflict unless they are of one version, and a machine may already have
/// `qemu-utils` from backports: asks for the version that `qemu-system-x86` will have.
fn with_one_qemu(mut packages: Vec<String>) -> Vec<String> {
    if packages.iter().any(|name| name.starts_with("qemu-")) {
        let policy = output(&mut line("apt-cache policy qemu-system-x86"));
        let version = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        if let Some(version) = version {
            packages.retain(|name| name != "qemu-utils");
            packages.push(format!("qemu-utils={version}"));
        }
    }
    packages
}

fn npm_packages() -> Result<(), Failure> {
    let node = output(&mut line("node --version"));
    let major = node.trim().trim_start_matches('v').split('.').next();
    if major.and_then(|number| number.parse().ok()) < Some(NODE_VERSION) {
        return Err(format!(
            "Node.js {NODE_VERSION} or newer with npm is missing (https://nodejs.org has it), found {node:?}"
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
