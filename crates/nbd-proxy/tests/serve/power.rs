//! What power the server has, and what its helper does for it.

use std::{
    fs,
    io::{BufRead as _, BufReader, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, program, wait_for},
    page::{Page, blocking, until},
};

/// `nobody`, on Debian as elsewhere.
const NOBODY: &str = "65534";
const NOTHING: &str = "0000000000000000";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A field of `/proc/…/status`.
fn field(status: &Path, name: &str) -> String {
    let text = fs::read_to_string(status).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    value.unwrap().trim().to_owned()
}

/// That field of each thread of the server.
fn of_threads(server: &Server, name: &str) -> Vec<String> {
    let tasks = format!("/proc/{}/task", server.process.id());
    fs::read_dir(tasks)
        .unwrap()
        .map(|task| field(&task.unwrap().path().join("status"), name))
        .collect()
}

fn all_are(server: &Server, name: &str, expected: &str) {
    let values = of_threads(server, name);
    assert!(values.len() > 2, "{values:?}");
    assert!(
        values.iter().all(|value| value == expected),
        "{name}: {values:?}"
    );
}

/// The process that the server started.
fn helper(server: &Server) -> u32 {
    let id = server.process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
fn no_thread_of_a_server_of_sockets_has_a_capability_or_gains_a_privilege_or_is_unfiltered() {
    let server = Server::start();
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        all_are(&server, set, NOTHING);
    }
    if is_root() {
        all_are(&server, "CapBnd", NOTHING);
    }
    all_are(&server, "NoNewPrivs", "1");
    all_are(&server, "Seccomp", "2");
}

#[test]
fn a_server_of_kernel_devices_has_the_one_capability_that_they_take() {
    if !is_root() {
        return;
    }
    let server = Server::with_device("/dev/nbd0", "\"hold\": 60", "");
    let only_sys_admin = format!("{:016x}", 1_u64 << 21);
    all_are(&server, "CapEff", &only_sys_admin);
    all_are(&server, "CapBnd", &only_sys_admin);
}

#[test]
fn fuse_files_and_loop_devices_take_no_capability_of_the_server() {
    for device in ["fuse:FOLDER/disk", "loop:"] {
        let server = Server::with_device(device, "\"hold\": 60", "");
        all_are(&server, "CapEff", NOTHING);
    }
}

#[tokio::test]
async fn a_hook_has_the_privileges_that_we_were_started_with_and_a_clean_environment() {
    let folder = Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "");
    let mut command = program(folder.path());
    command
        .env("SECRET_OF_THE_SHELL", "password")
        .env("LD_LIBRARY_PATH", "/nonexistent")
        .env("LANG", "C.UTF-8")
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(folder.path().join("config.json"));
    let server = Server::of(folder, Process::start(command), "http");
    server.write_hook(
        "tr '\\0' '\\n' </proc/$$/environ >environment
         ls -l /proc/$$/fd | sed -n 's/.* -> //p' >files
         cat /proc/$$/status >status.part; mv status.part status",
    );
    let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
    let path = |name: &str| server.folder.path().join(name);
    until("the start hook", || path("status").exists()).await;

    let status = path("status");
    let ours = Path::new("/proc/self/status");
    for set in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        assert_eq!(field(&status, set), field(ours, set), "{set}");
    }
    let environment = fs::read_to_string(path("environment")).unwrap();
    let names: Vec<_> = environment
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    let known = [
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "USER", "LOGNAME",
    ];
    let strange = |name: &&&str| !known.contains(name) && !name.starts_with("NBD_PROXY_");
    assert_eq!(names.iter().find(strange), None, "{environment}");
    assert!(names.contains(&"PATH") && environment.contains("LANG=C.UTF-8\n"));
    // Input, output, error, and the script that the shell reads.
    let files = fs::read_to_string(path("files")).unwrap();
    assert_eq!(
        files
            .lines()
            .filter(|file| file.contains("socket:"))
            .count(),
        0,
        "{files}"
    );
    page.close().await;
}

#[tokio::test]
async fn without_its_helper_a_session_goes_on_and_no_hook_is_passed_over() {
    let server = Arc::new(Server::start());
    let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
    until("the device", || server.session()["state"] == "attached").await;
    let pid = i32::try_from(helper(&server)).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("the message", || {
        server
            .process
            .said()
            .contains("the helper process has ended")
    })
    .await;
    // It still serves.
    let bytes = blocking(&server, |server| {
        crate::disk::Disk::connect(&server.device()).read_all()
    });
    assert_eq!(bytes.await, [7; 4096]);
    page.close().await;

    server.write_hook("");
    until("the end", || server.session().is_null()).await;
    let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
    page.ended().await;
    until("a sentence with the remedy, told anew", || {
        let said = server.process.said();
        said.contains("restart nbd-proxy")
            && said.matches("the helper process has ended").count() > 1
    })
    .await;
}

/// A helper of ours without a server.
struct Helper {
    channel: OwnedFd,
    _process: Process,
}

impl Helper {
    fn start(folder: &Path) -> Self {
        let (channel, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut command = program(folder);
        command
            .args(["serve-helper", "--config"])
            .arg(folder.join("config.json"));
        let process = Process::start_with_input(command, Stdio::from(theirs));
        Self {
            channel,
            _process: process,
        }
    }

    /// What it answers to a line; nothing where it hangs up.
    fn ask(&self, line: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [theirs.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let flags = SendFlags::empty();
        rustix::net::sendmsg(&self.channel, &[IoSlice::new(b"c")], &mut control, flags).unwrap();
        drop(theirs);
        ours.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = BufReader::new(ours).read_line(&mut answer);
        answer
    }

    fn call(&self, call: &Value) -> String {
        self.ask(&format!("{call}\n"))
    }
}

fn hook(configuration: &str, device: &str) -> Value {
    json!({ "Hook": {
        "configuration": configuration, "action": "start", "reason": "attached",
        "subject": {
            "device": device, "size": 512, "read_only": true, "image": "a.iso", "user": "", "media": "disk",
        },
    }})
}

#[test]
fn a_server_that_was_taken_over_gets_nothing_from_the_helper_but_what_is_configured() {
    let folder = Server::folder("fuse:FOLDER/disk", "\"hold\": 60", "");
    let hook_path = folder.path().join("hook");
    fs::write(
        &hook_path,
        format!("#!/bin/sh\necho \"$@\" >>{}/ran\n", folder.path().display()),
    )
    .unwrap();
    fs::set_permissions(&hook_path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("victim"), "").unwrap();
    let helper = Helper::start(folder.path());
    let at = |name: &str| folder.path().canonicalize().unwrap().join(name);

    assert_eq!(helper.ask("\"Hello\"\n"), "\"Done\"\n");
    let device = at("disk").display().to_string();
    assert_eq!(helper.call(&hook("0", &device)), "\"Done\"\n");
    for refused in [
        hook("/bin/sh", &device),
        hook("0", "/dev/sda"),
        hook("0", "/dev/nbd0"),
        json!({ "Work": { "Mount": { "path": at("victim"), "others": true } } }),
        json!({ "Work": { "Mount": { "path": "/etc/passwd", "others": true } } }),
        json!({ "Work": { "Unmount": { "path": "/proc" } } }),
        json!({ "Work": { "AttachLoop": { "path": "/etc/shadow" } } }),
        json!({ "Work": { "DetachLoop": { "index": 0 } } }),
        json!({ "Work": { "FirstRead": { "disk": "sda" } } }),
        json!({ "Work": "LoadNbd" }),
    ] {
        let answer = helper.call(&refused);
        assert!(answer.contains("Failed"), "{refused}: {answer}");
    }
    for nonsense in [
        "\n",
        "{}\n",
        "{\"Run\": \"/bin/sh\"}\n",
        "{\"Hook\": {\"path\": \"/bin/sh\"}}\n",
        &format!("\"{}\"\n", "x".repeat(1 << 17)),
    ] {
        assert_eq!(helper.ask(nonsense), "");
    }
    assert_eq!(fs::read_to_string(at("ran")).unwrap(), "start 0\n");
}

#[test]
fn the_helper_is_for_its_server_alone() {
    let folder = Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "");
    let mut command = program(folder.path());
    command.arg("serve-helper");
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("for serve to start"), "{said}");
}

#[test]
fn the_helper_ends_with_its_server_however_that_ends() {
    let server = Server::start();
    let helper = format!("/proc/{}", helper(&server));
    server.process.signal(rustix::process::Signal::KILL);
    wait_for("the helper's end", || {
        (!Path::new(&helper).exists()).then_some(())
    });
}

#[tokio::test]
async fn what_is_left_of_a_configuration_that_is_no_more_is_freed_without_its_privileges() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: only root has loop devices, where there is FUSE");
        return;
    }
    for device in ["fuse:", "loop:"] {
        let server = Server::with_device(device, "\"hold\": 60", "");
        let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
        until("the device", || server.session()["state"] == "attached").await;
        server.process.signal(rustix::process::Signal::KILL);
        let Server {
            folder, process, ..
        } = server;
        process.wait();
        page.lose().await;
        let path = folder.path().display().to_string();
        let is_mounted = || {
            fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .contains(&path)
        };
        assert!(is_mounted(), "{device}");
        let config = r#"{"configurations": {"lab": {"device": "unix:"}}}"#;
        fs::write(folder.path().join("config.json"), config).unwrap();
        let server = Server::again(folder);
        all_are(&server, "CapEff", NOTHING);
        until("the unmount", || !is_mounted()).await;
        until("the message", || {
            server.process.said().contains("there is no more")
        })
        .await;
    }
}

/// A program of another user than root.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
            "--inh-caps=-all",
            "--",
        ])
        .arg(program);
    command
}

/// A server without root, its folder and all.
fn unprivileged(device: &str) -> Option<Server> {
    if !is_root() {
        return Some(Server::with_device(device, "\"hold\": 60", ""));
    }
    let folder = Server::folder(device, "\"hold\": 60", "");
    // Where the program was built nobody may have to look.
    let copy = folder.path().join("nbd-proxy");
    fs::copy(env!("CARGO_BIN_EXE_nbd-proxy"), &copy).unwrap();
    let owned = Command::new("chown")
        .args(["-R", &format!("{NOBODY}:{NOBODY}")])
        .arg(folder.path())
        .status();
    assert!(owned.unwrap().success());
    let mut command = as_nobody(&copy);
    command
        .env("RUNTIME_DIRECTORY", folder.path().join("run"))
        .env("STATE_DIRECTORY", folder.path().join("state"))
        .env_remove("NBD_PROXY_CONFIG")
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(folder.path().join("config.json"));
    Some(Server::of(folder, Process::start(command), "http"))
}

#[tokio::test]
async fn a_socket_needs_no_root() {
    let server = Arc::new(unprivileged("unix:FOLDER/0.sock").unwrap());
    all_are(&server, "CapEff", NOTHING);
    let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
    until("the device", || server.session()["state"] == "attached").await;
    let bytes = blocking(&server, |server| {
        crate::disk::Disk::connect(&server.device()).read_all()
    });
    assert_eq!(bytes.await, [7; 4096]);
    page.close().await;
}

#[tokio::test]
async fn a_fuse_file_needs_no_root_since_the_helper_may_run_fusermount3() {
    let has_fusermount = Command::new("fusermount3")
        .arg("--version")
        .output()
        .is_ok();
    if !Path::new("/dev/fuse").exists() || !has_fusermount {
        eprintln!("skipped: there is no FUSE here, or no fusermount3");
        return;
    }
    let server = Arc::new(unprivileged("fuse:FOLDER/disk").unwrap());
    all_are(&server, "CapEff", NOTHING);
    let page = Page::open(&server, "/nbd/0").await.serve(&[7; 4096]);
    until("the device", || server.session()["state"] == "attached").await;
    let bytes = blocking(&server, |server| {
        let file = server.folder.path().join("disk");
        let mut cat = if is_root() {
            as_nobody(Path::new("cat"))
        } else {
            Command::new("cat")
        };
        cat.arg(file).output().unwrap().stdout
    });
    assert_eq!(bytes.await, [7; 4096]);
    page.close().await;
    until("the unmount", || {
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(&server.folder.path().display().to_string())
    })
    .await;
}
