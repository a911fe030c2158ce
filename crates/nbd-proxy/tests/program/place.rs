use std::{
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use tempfile::TempDir;

use crate::{Behaviour, Machine, Page, wait_for};

/// A folder with a configuration, a state hook that records its calls, and a runtime directory.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// With one configuration, `0`, a Unix socket. Requests may stay unanswered longer than any test takes.
    pub(crate) fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let (socket, hook) = (place.socket(), place.path("state"));
        place.write_config(&format!(
            r#"{{"timeout": 3600, "configurations": {{
                "0": {{"device": "unix:{}", "state-hook": "{}", "hook-timeout": 3600, "media": "cdrom"}}}}}}"#,
            socket.display(),
            hook.display()
        ));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the device is to appear.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("disk.sock")
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub(crate) fn write_config(&self, text: &str) {
        std::fs::write(self.path("config.json"), text).unwrap();
    }

    /// A hook that records its call, then runs `script` in the folder.
    pub(crate) fn write_hook(&self, script: &str) {
        let variables = [
            "DEVICE",
            "SIZE",
            "READ_ONLY",
            "IMAGE",
            "USER",
            "MEDIA",
            "REASON",
        ];
        let record: String = variables.map(|name| format!("|$NBD_PROXY_{name}")).concat();
        let folder = self.folder.path().display();
        let text = format!("#!/bin/sh\ncd {folder}\necho \"$1|$2{record}\" >>calls\n{script}\n");
        // Written by another process: a file that we have open for writing may be so in a fork of another test's, and
        // can't be executed then.
        let mut write = Command::new("tee")
            .arg(self.path("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut write.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(write.wait().unwrap().success());
        std::fs::set_permissions(self.path("state"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
    }

    /// The hook's calls so far: arguments and environment, separated by bars.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(String::from).collect()
    }

    /// The line that a call leaves for an image of `size` bytes.
    pub(crate) fn call(&self, action: &str, size: u64, reason: &str) -> String {
        format!(
            "{action}|0|{}|{size}|1|||cdrom|{reason}",
            self.socket().display()
        )
    }

    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-proxy"));
        command
            .args(arguments)
            .env("NBD_PROXY_CONFIG", self.path("config.json"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end without input: status, standard output, standard error.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self
            .program(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// Starts `nbd-proxy 0` on two pipes.
    pub(crate) fn start(&self) -> Proxy {
        Proxy::new(self.program(&["0"]).spawn().unwrap())
    }

    /// Starts `nbd-proxy 0` and serves `image` to it.
    pub(crate) fn attach(&self, image: &Bytes, behaviour: Behaviour) -> (Proxy, Page) {
        let mut proxy = self.start();
        let (output, input) = proxy.take_pipes();
        (proxy, Page::serve(image.clone(), behaviour, output, input))
    }

    /// Connects to the device once it is there.
    pub(crate) fn connect(&self) -> Machine {
        Machine::new(self.connect_raw(), "")
    }

    pub(crate) fn connect_raw(&self) -> UnixStream {
        wait_for("the device", || UnixStream::connect(self.socket()).ok())
    }
}

/// A running `nbd-proxy`, killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    messages: Option<JoinHandle<String>>,
}

impl Proxy {
    pub(crate) fn new(mut child: Child) -> Self {
        let mut stderr = child.stderr.take().unwrap();
        let messages = thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        Self {
            child,
            messages: Some(messages),
        }
    }

    pub(crate) fn take_pipes(&mut self) -> (ChildStdout, ChildStdin) {
        (
            self.child.stdout.take().unwrap(),
            self.child.stdin.take().unwrap(),
        )
    }

    pub(crate) fn id(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args(["-s", name, &self.id()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end: exit status, or a signal's number below zero, and messages.
    pub(crate) fn wait(mut self) -> (i32, String) {
        let status = wait_for("the end of nbd-proxy", || self.child.try_wait().unwrap());
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap());
        let messages = self.messages.take().unwrap().join().unwrap();
        assert!(
            messages.lines().all(|line| line.starts_with("nbd-proxy: ")),
            "{messages}"
        );
        (code, messages)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
