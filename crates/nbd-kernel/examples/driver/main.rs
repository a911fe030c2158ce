//! Tries this crate on the running kernel's NBD driver. Run it as root where its devices may be taken: the guest of
//! `tests/vm` (`tests/vm/run.sh -R -s . target/debug/examples/driver`). Exit status 0 when all went well.

mod peer;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nbd_kernel::block::QueueTuning;
use nbd_kernel::nbd::{ConnectOptions, Device, IoctlAttachment, IoctlOptions, Netlink};
use nbd_kernel::{Error, users};

const MIB: u64 = 1 << 20;
const WHOLE: usize = 1 << 20;
/// NBD_FLAG_HAS_FLAGS and NBD_FLAG_READ_ONLY.
const READ_ONLY: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = Result<(), String>;

/// One behaviour: its name, and what shows it.
type Check = (&'static str, fn() -> Outcome);

const CHECKS: [Check; 11] = [
    (
        "netlink: attach the first free device, read it, detach it",
        attach_by_netlink,
    ),
    (
        "netlink: a second attach is refused and harms nothing",
        second_attach_of_netlink,
    ),
    (
        "netlink: a dead connection is told, and a new socket goes on",
        reconfigure,
    ),
    (
        "netlink: a device left by a killed process is recognised and freed",
        leftover_of_netlink,
    ),
    (
        "netlink: whoever has it open keeps a detached device from being free",
        draining,
    ),
    ("ioctl: attach, read, detach", attach_by_ioctl),
    (
        "ioctl: a device of 3 TiB has its size, and its last byte",
        large_by_ioctl,
    ),
    (
        "ioctl: a second attach is refused and harms nothing",
        second_attach_of_ioctl,
    ),
    ("ioctl: a device ends with its process", leftover_of_ioctl),
    (
        "ioctl: detaching ends while the peer is silent",
        silent_peer,
    ),
    ("what does not exist is said to be absent", absent),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, index] = &arguments[..] {
        return hold(role, index.parse().expect("a device's number"));
    }
    if let Err(e) = nbd_kernel::module::load("nbd") {
        eprintln!("{e}");
        return ExitCode::FAILURE;
    }
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => println!("ok   {name}"),
            Err(reason) => {
                failed += 1;
                println!("FAIL {name}: {reason}");
            }
        }
    }
    println!("{} passed, {failed} failed", CHECKS.len() - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The other role of this program: attaches a device and waits to be killed.
fn hold(role: &str, index: u32) -> ExitCode {
    let socket = peer::serve();
    let held: Box<dyn std::any::Any> = match role {
        "netlink" => Box::new(connect(Some(index), &socket, 60).expect("attach")),
        _ => Box::new(by_ioctl(index, MIB, socket.try_clone().expect("a socket")).expect("attach")),
    };
    println!("attached");
    loop {
        thread::park();
        let _ = &held;
    }
}

fn start_holder(role: &str, index: u32) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let child = Command::new(program)
        .args([role, &index.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    wait_for("the device to be attached", || {
        Device::new(index).disk().size() == MIB
    })?;
    Ok(child)
}

fn kill(mut child: Child) -> Outcome {
    child
        .kill()
        .and_then(|()| child.wait())
        .map_err(|e| e.to_string())?;
    Ok(())
}

fn netlink() -> Result<Netlink, String> {
    Netlink::open()
        .map_err(text)?
        .ok_or_else(|| "no NBD netlink family".to_owned())
}

fn connect(index: Option<u32>, socket: impl AsFd, dead_seconds: u64) -> nbd_kernel::Result<u32> {
    let options = ConnectOptions {
        index,
        size: MIB,
        block_size: 512,
        server_flags: READ_ONLY,
        dead_connection_timeout: Duration::from_secs(dead_seconds),
        backend_identifier: "nbd-proxy:0:abc",
    };
    Netlink::open()?
        .ok_or(Error::NoNbdDriver)?
        .connect(&options, socket.as_fd())
}

fn by_ioctl(
    index: u32,
    size: u64,
    socket: std::os::fd::OwnedFd,
) -> nbd_kernel::Result<IoctlAttachment> {
    let options = IoctlOptions {
        size,
        block_size: 512,
        server_flags: READ_ONLY,
    };
    IoctlAttachment::attach(index, &options, socket)
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn text(error: Error) -> String {
    error.to_string()
}

fn path(index: u32) -> PathBuf {
    Device::new(index).disk().path()
}

fn check_all(index: u32) -> Outcome {
    drop_caches()?;
    peer::check(&path(index), 0, WHOLE)
}

fn drop_caches() -> Outcome {
    std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| e.to_string())
}

fn ensure(condition: bool, what: &str) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(format!("not so: {what}"))
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return Err(format!("waited in vain for {what}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn wait_until_free(index: u32) -> Outcome {
    wait_for("the device to be free", || {
        Device::new(index).ensure_free().is_ok()
    })
}

fn attach_by_netlink() -> Outcome {
    let index = connect(None, peer::serve(), 60).map_err(text)?;
    let device = Device::new(index);
    let disk = device.disk();
    ensure(
        disk.size() == MIB && disk.read_only(),
        "its size, and that it is read-only",
    )?;
    let attached = device.attached().ok_or("it does not show as attached")?;
    ensure(
        attached.backend.as_deref() == Some("nbd-proxy:0:abc"),
        "its backend identifier",
    )?;
    let status = netlink()?.status().map_err(text)?;
    ensure(status.contains(&(index, true)), "STATUS lists it")?;

    let tuning = QueueTuning {
        read_ahead_kb: Some(1024),
        max_sectors_kb: Some(1024),
        io_timeout: Some(Duration::from_secs(2)),
    };
    let refused = disk.tune(&tuning);
    ensure(
        refused.is_empty(),
        &format!("all knobs are set: {refused:?}"),
    )?;
    for (knob, value) in [
        ("read_ahead_kb", "1024"),
        ("max_sectors_kb", "1024"),
        ("io_timeout", "2000"),
    ] {
        let file = format!("/sys/block/nbd{index}/queue/{knob}");
        let now = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        ensure(
            now.trim() == value,
            &format!("{knob} is {value}, not {now}"),
        )?;
    }

    check_all(index)?;
    netlink()?.disconnect(index).map_err(text)?;
    wait_until_free(index)?;
    ensure(disk.size() == 0, "its size is 0 afterwards")
}

fn second_attach_of_netlink() -> Outcome {
    let index = connect(Some(1), peer::serve(), 60).map_err(text)?;
    let again = connect(Some(index), peer::serve(), 60);
    ensure(
        matches!(again, Err(Error::Busy { .. })),
        &format!("netlink is refused: {again:?}"),
    )?;
    let again = by_ioctl(index, 2 * MIB, peer::serve());
    ensure(
        matches!(again, Err(Error::Busy { .. })),
        &format!("ioctl is refused: {again:?}"),
    )?;
    ensure(Device::new(index).disk().size() == MIB, "it keeps its size")?;
    check_all(index)?;
    netlink()?.disconnect(index).map_err(text)?;
    wait_until_free(index)
}

fn reconfigure() -> Outcome {
    let watch = netlink()?.watch().map_err(text)?;
    let (ours, theirs) = peer::silent();
    let index = connect(Some(2), &theirs, 600).map_err(text)?;
    drop((ours, theirs));
    let reader = thread::spawn(move || peer::check(&path(index), 0, WHOLE));
    let told = watch.next(Some(PATIENCE)).map_err(text)?;
    ensure(
        told == Some(index),
        &format!("the link is told to be dead: {told:?}"),
    )?;
    ensure(!reader.is_finished(), "the reader waits")?;
    let socket = peer::serve();
    netlink()?
        .reconfigure(
            index,
            "nbd-proxy:0:abc",
            Duration::from_secs(60),
            socket.as_fd(),
        )
        .map_err(text)?;
    reader.join().map_err(|_| "the reader panicked")??;
    netlink()?.disconnect(index).map_err(text)?;
    wait_until_free(index)
}

fn leftover_of_netlink() -> Outcome {
    let index = 3;
    let holder = start_holder("netlink", index)?;
    let open = File::open(path(index)).map_err(|e| e.to_string())?;
    kill(holder)?;
    let device = Device::new(index);
    let backend = device.attached().and_then(|attached| attached.backend);
    ensure(
        backend.as_deref() == Some("nbd-proxy:0:abc"),
        "it bears its identifier",
    )?;
    let reader = Command::new("cat")
        .stdin(open)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    wait_for("the reader to show as a user", || {
        !users::of_disk(device.disk(), &[std::process::id()]).is_empty()
    })?;
    let named = users::of_disk(device.disk(), &[std::process::id()])[0].to_string();
    ensure(
        named == format!("open in process {} (cat)", reader.id()),
        &named,
    )?;
    netlink()?.disconnect(index).map_err(text)?;
    let output = reader.wait_with_output().map_err(|e| e.to_string())?;
    ensure(!output.status.success(), "its reader gets an error")?;
    wait_until_free(index)
}

fn draining() -> Outcome {
    let index = connect(Some(4), peer::serve(), 60).map_err(text)?;
    let opener = File::open(path(index)).map_err(|e| e.to_string())?;
    netlink()?.disconnect(index).map_err(text)?;
    ensure(
        Device::new(index).attached().is_some(),
        "it is not free while it is open",
    )?;
    drop(opener);
    wait_until_free(index)
}

fn end(attachment: &IoctlAttachment) -> Outcome {
    attachment.disconnect().map_err(text)?;
    let end = attachment.wait(PATIENCE).ok_or("NBD_DO_IT does not end")?;
    end.map_err(text)?;
    wait_until_free(attachment.device().index())
}

fn attach_by_ioctl() -> Outcome {
    let attachment = by_ioctl(5, MIB, peer::serve()).map_err(text)?;
    let disk = attachment.device().disk();
    ensure(
        disk.size() == MIB && disk.read_only(),
        "its size, and that it is read-only",
    )?;
    ensure(
        users::of_disk(disk, &[std::process::id()]).is_empty(),
        "we do not count as a user ourselves",
    )?;
    check_all(5)?;
    end(&attachment)
}

fn large_by_ioctl() -> Outcome {
    let size = 3 << 40;
    let attachment = by_ioctl(6, size, peer::serve()).map_err(text)?;
    ensure(attachment.device().disk().size() == size, "its size")?;
    peer::check(&path(6), size - 65536, 65536)?;
    end(&attachment)
}

fn second_attach_of_ioctl() -> Outcome {
    let attachment = by_ioctl(7, MIB, peer::serve()).map_err(text)?;
    let again = by_ioctl(7, 2 * MIB, peer::serve());
    ensure(
        matches!(again, Err(Error::Busy { .. })),
        &format!("ioctl is refused: {again:?}"),
    )?;
    let again = connect(Some(7), peer::serve(), 60);
    ensure(
        matches!(again, Err(Error::Busy { .. })),
        &format!("netlink is refused: {again:?}"),
    )?;
    ensure(
        attachment.device().disk().size() == MIB,
        "it keeps its size",
    )?;
    check_all(7)?;
    end(&attachment)
}

fn leftover_of_ioctl() -> Outcome {
    kill(start_holder("ioctl", 8)?)?;
    wait_until_free(8)
}

fn silent_peer() -> Outcome {
    let (ours, theirs) = peer::silent();
    let attachment = by_ioctl(9, MIB, theirs).map_err(text)?;
    let reader = thread::spawn(|| peer::check(&path(9), 0, 4096));
    wait_for("the reader's request", || {
        std::fs::read_to_string("/sys/block/nbd9/inflight")
            .is_ok_and(|text| text.trim_start().starts_with('1'))
    })?;
    attachment.disconnect().map_err(text)?;
    drop(ours);
    attachment
        .wait(PATIENCE)
        .ok_or("NBD_DO_IT does not end")?
        .map_err(text)?;
    let outcome = reader.join().map_err(|_| "the reader panicked")?;
    ensure(outcome.is_err(), "its reader gets an error")?;
    wait_until_free(9)
}

fn absent() -> Outcome {
    let attached = connect(Some(4000), peer::serve(), 60);
    ensure(
        matches!(attached, Err(Error::NoDevice { index: 4000 })),
        &format!("{attached:?}"),
    )?;
    ensure(!Path::new("/dev/nbd4000").exists(), "nothing was made")
}
