//! Debian packages that the tests need, on Debian and its likes.

use std::path::Path;

use crate::command::{Failure, command, line, output, run};
use crate::setup::is_recent_node;

/// One package a line, or several with `|` between them, of which the first that there is will do.
const PACKAGES: &str = include_str!("../debian-packages.txt");

/// Installs what is missing.
pub(crate) fn packages() -> Result<(), Failure> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        println!("Not a Debian system: install the likes of xtask/debian-packages.txt by hand.");
        return Ok(());
    }
    let missing = missing();
    if missing.is_empty() {
        println!("All Debian packages are there.");
        return Ok(());
    }
    if output(&mut line("id -u")).trim() != "0" {
        return Err(format!(
            "Debian packages are missing, and only root can install them:\n  \
             sudo apt-get install --no-install-recommends {}",
            available(missing)?.join(" ")
        ));
    }
    run(&mut line("apt-get update --quiet"))?;
    run(
        line("apt-get install --quiet --yes --no-install-recommends --allow-downgrades")
            .args(with_one_qemu(available(missing)?))
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// What is not installed, each with what would do in its place.
fn missing() -> Vec<Vec<&'static str>> {
    let listing = output(&mut command(
        "dpkg-query",
        ["-W", "-f", "${Package} ${db:Status-Status}\n"],
    ));
    let installed = |name: &&str| {
        listing
            .lines()
            .any(|line| line == format!("{name} installed"))
    };
    let mut missing: Vec<Vec<&str>> = PACKAGES
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(" | ").collect())
        .filter(|choice: &Vec<&str>| !choice.iter().any(installed))
        .collect();
    // Node.js may also have come from elsewhere, and has to where the archive's is too old.
    if output(&mut line("npm --version")).is_empty()
        && candidate("nodejs").is_some_and(|version| is_recent_node(&version))
    {
        missing.push(vec!["npm"]);
    }
    missing
}

/// The first of each choice that this system's archive has.
fn available(choices: Vec<Vec<&'static str>>) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    let mut absent = Vec::new();
    for choice in choices {
        match choice.iter().find(|name| candidate(name).is_some()) {
            Some(name) => found.push((*name).to_owned()),
            None => absent.push(choice.join(" or ")),
        }
    }
    if absent.is_empty() {
        return Ok(found);
    }
    Err(format!(
        "this system's archive lacks {}. Every step runs on Debian 12 and 13; elsewhere install the likes of \
         these by hand (Ubuntu has its browsers as snaps alone), and the rest by\n  \
         apt-get install --no-install-recommends {}\n\
         Then `npm ci`, and `cargo xtask test STEP...` runs the steps for which that suffices.",
        absent.join(", "),
        found.join(" ")
    ))
}

/// The version of a package that would be installed.
fn candidate(package: &str) -> Option<String> {
    let policy = output(&mut command("apt-cache", ["policy", package]));
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Packages of QEMU conflict unless they are of one version, and a machine may already have
/// `qemu-utils` from backports: asks for the version that `qemu-system-x86` will have.
fn with_one_qemu(mut packages: Vec<String>) -> Vec<String> {
    if packages.iter().any(|name| name.starts_with("qemu-"))
        && let Some(version) = candidate("qemu-system-x86")
    {
        packages.retain(|name| name != "qemu-utils");
        packages.push(format!("qemu-utils={version}"));
    }
    packages
}
