//! Loading a kernel module.

use std::io;
use std::process::{Command, Stdio};

use crate::error::{Doing, Result};

/// Where `modprobe` may be, whatever PATH we were started with.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Loads a kernel module with `modprobe`; loaded already is no error. Needs root.
pub fn load(name: &str) -> Result<()> {
    modprobe(&["--", name], format!("load the kernel module {name}"))
}

/// Whether `modprobe` would find that module (or finds it built in); loads nothing.
pub fn is_installed(name: &str) -> bool {
    modprobe(&["-n", "--", name], String::new()).is_ok()
}

fn modprobe(arguments: &[&str], action: String) -> Result<()> {
    let output = Command::new("modprobe")
        .args(arguments)
        .env("PATH", SEARCH_PATH)
        .stdin(Stdio::null())
        .output()
        .doing("run modprobe")?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(complaint)).doing(action)
}
