//! Which kinds of device work here.

use std::{fs, net::TcpListener, os::unix::net::UnixListener, path::Path};

use nbd_kernel::{
    module,
    nbd::{Device, Netlink, driver_loaded},
};

use super::Finding;
use crate::device::kernel::LOAD_REMEDY;

const ROOT_REMEDY: &str = "run as root (CAP_SYS_ADMIN)";
/// `CAP_SYS_ADMIN`'s bit (capabilities(7)).
const CAP_SYS_ADMIN: u32 = 21;

/// Every kind, in the order in which `auto` prefers them.
pub(super) fn all(runtime_dir: Option<&Path>) -> Vec<Finding> {
    vec![kernel(), loopdev(), fuse(), unix(runtime_dir), tcp()]
}

fn kernel() -> Finding {
    let subject = "nbd:";
    if !driver_loaded() && !module::is_installed("nbd") {
        return Finding::lacking(subject, "the kernel has no NBD driver", LOAD_REMEDY);
    }
    if !may_administer() {
        return Finding::lacking(subject, "not permitted to this user", ROOT_REMEDY);
    }
    if !driver_loaded() {
        return Finding::works(
            subject,
            "the kernel's NBD driver, which is loaded when needed",
        );
    }
    let way = match Netlink::open() {
        Ok(Some(_)) => "netlink",
        _ => "ioctl alone",
    };
    let devices = Device::all();
    let free = devices
        .iter()
        .filter(|device| device.attached().is_none())
        .count();
    Finding::works(
        subject,
        format!(
            "the kernel's NBD driver, {way}, {free} of {} devices free",
            devices.len()
        ),
    )
}

/// Why that one device could not be attached now.
pub(super) fn kernel_device(index: u32) -> Option<Finding> {
    if !driver_loaded() {
        return None; // the line of nbd: says it
    }
    let error = Device::new(index).ensure_free().err()?;
    let remedy = "detach it (nbd-client -d), or configure another";
    Some(Finding::lacking("", error, remedy))
}

#[cfg(feature = "fuse")]
fn loopdev() -> Finding {
    use crate::device::loopdev::LOOP_REMEDY;

    let subject = "loop:";
    if let Err(error) = nbd_kernel::fuse::available() {
        return Finding::lacking(subject, error, crate::device::fuse::MOUNT_REMEDY);
    }
    match nbd_kernel::loopdev::available() {
        Ok(()) => Finding::works(subject, "loop devices over FUSE"),
        Err(error) if error.is_absent() && module::is_installed("loop") && may_administer() => {
            Finding::works(
                subject,
                "loop devices over FUSE, whose driver is loaded when needed",
            )
        }
        Err(error) => Finding::lacking(subject, error, LOOP_REMEDY),
    }
}

#[cfg(feature = "fuse")]
fn fuse() -> Finding {
    use crate::device::fuse::MOUNT_REMEDY;

    let subject = "fuse:";
    match nbd_kernel::fuse::available() {
        Ok(()) if may_administer() => Finding::works(subject, "FUSE files, mounted directly"),
        Ok(()) if in_path("fusermount3") => {
            Finding::works(subject, "FUSE files, mounted by fusermount3")
        }
        Ok(()) => Finding::lacking(
            subject,
            "mounting is not permitted, and there is no fusermount3",
            MOUNT_REMEDY,
        ),
        Err(error) => Finding::lacking(subject, error, MOUNT_REMEDY),
    }
}

#[cfg(not(feature = "fuse"))]
fn loopdev() -> Finding {
    Finding::lacking(
        "loop:",
        "this nbd-proxy was built without it",
        "build it with the feature \"fuse\"",
    )
}

#[cfg(not(feature = "fuse"))]
fn fuse() -> Finding {
    Finding::lacking(
        "fuse:",
        "this nbd-proxy was built without it",
        "build it with the feature \"fuse\"",
    )
}

fn unix(runtime_dir: Option<&Path>) -> Finding {
    let subject = "unix:";
    let remedy = "give a path in a folder that you may write to: unix:PATH";
    let Some(runtime_dir) = runtime_dir else {
        return Finding::lacking(
            subject,
            "there is no runtime directory",
            "see the line on it",
        );
    };
    let path = runtime_dir.join(format!(".check-{}.sock", std::process::id()));
    match UnixListener::bind(&path) {
        Ok(_) => {
            let _ = fs::remove_file(&path);
            Finding::works(subject, "an NBD server on a Unix socket")
        }
        Err(error) => Finding::lacking(subject, format!("{}: {error}", path.display()), remedy),
    }
}

fn tcp() -> Finding {
    match TcpListener::bind(("127.0.0.1", 0)) {
        Ok(_) => Finding::works("tcp:", "an NBD server on loopback"),
        Err(error) => Finding::lacking(
            "tcp:",
            error,
            "bring the loopback interface up (ip link set lo up)",
        ),
    }
}

fn may_administer() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    capabilities
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}

#[cfg(feature = "fuse")]
fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
