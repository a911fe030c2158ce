//! A server of ours in a folder of its own, and what talks to it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `attempt` gives something.
pub(crate) fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What `call` gives, which has a time limit: such a one is interrupted where all is stopped and goes on (signal(7)).
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A running `nbd-proxy serve`, and its folder.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Empty where there is none.
    pub(crate) token: String,
}

impl Server {
    /// With two configurations on Unix sockets: `"0"`, the default, and `"lab 2"`.
    pub(crate) fn start() -> Self {
        Self::with("\"hold\": 60", "")
    }

    /// Further members of configuration `"0"` and of `serve`; `FOLDER` in them is the server's.
    pub(crate) fn with(members: &str, serve: &str) -> Self {
        Self::with_device("unix:FOLDER/0.sock", members, serve)
    }

    /// The same with another device in configuration `"0"`.
    pub(crate) fn with_device(device: &str, members: &str, serve: &str) -> Self {
        Self::again(Self::folder(device, members, serve))
    }

    /// A folder with such a configuration.
    pub(crate) fn folder(device: &str, members: &str, serve: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let config = format!(
            r#"{{"configurations": {{
                "0": {{"device": "{device}", "default": true, "state-hook": "FOLDER/hook", {members}}},
                "lab 2": {{"device": "unix:FOLDER/lab.sock", "metadata": {{"b": 1, "a": 2}}}}
            }}, "serve": {{{serve}}}}}"#
        );
        std::fs::write(
            folder.path().join("config.json"),
            config.replace("FOLDER", &path),
        )
        .unwrap();
        folder
    }

    /// With the configuration that is in `folder` already.
    pub(crate) fn again(folder: TempDir) -> Self {
        Self::again_at(folder, ([127, 0, 0, 1], 0).into())
    }

    /// The same at a certain address.
    pub(crate) fn again_at(folder: TempDir, address: SocketAddr) -> Self {
        Self::again_as(folder, address, "http", &[])
    }

    /// The same with further arguments, where they make it print another scheme.
    pub(crate) fn again_as(
        folder: TempDir,
        address: SocketAddr,
        scheme: &str,
        arguments: &[&str],
    ) -> Self {
        let mut command = program(folder.path());
        command
            .args(["serve", "--listen", &address.to_string(), "--config"])
            .arg(folder.path().join("config.json"))
            .args(arguments);
        Self::of(folder, Process::start(command), scheme)
    }

    /// A process that is going to print its address.
    pub(crate) fn of(folder: TempDir, mut process: Process, scheme: &str) -> Self {
        let line = process.first_line();
        let (address, token) = line
            .strip_prefix(&format!("{scheme}://"))
            .and_then(|rest| rest.split_once('/'))
            .expect(&line);
        let token = token.strip_prefix("#token=").unwrap_or_default();
        Self {
            address: address.parse().unwrap(),
            token: token.to_owned(),
            folder,
            process,
        }
    }

    /// Kills it, and starts it again at the same address.
    pub(crate) fn restart(self) -> Self {
        let Self {
            folder,
            process,
            address,
            ..
        } = self;
        process.signal(rustix::process::Signal::KILL);
        let _ = process.wait();
        Self::again_at(folder, address)
    }

    /// Trades the token for a cookie, as a browser sends it back.
    pub(crate) fn log_in(&self) -> String {
        let body = serde_json::json!({ "token": self.token }).to_string();
        let response = self.request("POST", "/api/v1/login", &[], &body);
        cookie(&response)
    }

    /// The address to open.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/#token={}", self.address, self.token)
    }

    /// The socket of configuration `"0"`.
    pub(crate) fn device(&self) -> PathBuf {
        self.folder.path().join("0.sock")
    }

    /// A state hook in the shell's language.
    pub(crate) fn write_hook(&self, script: &str) {
        let path = self.folder.path().join("hook");
        std::fs::write(
            &path,
            format!("#!/bin/sh\ncd {}\n{script}\n", self.folder.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One of our subcommands, which finds this server's control socket.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.folder.path());
        command.args(arguments);
        command
    }

    /// Runs one to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Runs `nbd-proxy passwd` on its files.
    pub(crate) fn passwd(&self, arguments: &[&str], stdin: &str) -> String {
        passwd(self.folder.path(), arguments, stdin).stdout
    }

    /// Signs in with the right password, and returns the cookie as a browser sends it back.
    pub(crate) fn sign_in(&self, user: &str) -> String {
        let response = self.try_password(user, &password(user), &[]);
        assert_eq!(response.status, 204, "{response:?}");
        cookie(&response)
    }

    /// Signs in with any.
    pub(crate) fn try_password(&self, user: &str, password: &str, headers: &[&str]) -> Response {
        let body = serde_json::json!({"user": user, "password": password}).to_string();
        self.request("POST", "/api/v1/login", headers, &body)
    }

    /// A request with the token.
    pub(crate) fn get(&self, path: &str) -> Response {
        let authorization = format!("Authorization: Bearer {}", self.token);
        self.request("GET", path, &[&authorization], "")
    }

    /// A request with the token and a body.
    pub(crate) fn post(&self, path: &str, body: &str) -> Response {
        let authorization = format!("Authorization: Bearer {}", self.token);
        self.request("POST", path, &[&authorization], body)
    }

    /// A request with any headers; `Host` is right unless given.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Response {
        Response::read(self.send(method, path, headers, body))
    }

    /// The connection after a request was sent.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !headers.iter().any(|header| header.starts_with("Host:")) {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        if !headers
            .iter()
            .any(|header| header.starts_with("Connection:"))
        {
            text.push_str("Connection: close\r\n");
        }
        if method == "POST" && !headers.iter().any(|one| one.starts_with("Content-Type:")) {
            text.push_str("Content-Type: application/json\r\n");
        }
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        stream
            .write_all(format!("{text}\r\n{body}").as_bytes())
            .unwrap();
        stream
    }

    /// The session of configuration `"0"` in the API's words.
    pub(crate) fn session(&self) -> Value {
        self.get("/api/v1/configurations/0").json()["session"].clone()
    }

    /// Waits until that session is in a state.
    pub(crate) fn wait_for_state(&self, state: &str) -> Value {
        wait_for(&format!("state {state}"), || {
            Some(self.session()).filter(|session| session["state"] == state)
        })
    }

    /// Waits until there is no session.
    pub(crate) fn wait_until_free(&self) {
        wait_for("the end of the session", || {
            self.session().is_null().then_some(())
        });
    }

    /// A file to share.
    pub(crate) fn image(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// With `"0"`, which `allow` says who may use, and users and tokens in files; `eva` and `max` have passwords.
pub(crate) struct People {
    folder: TempDir,
}

impl People {
    /// A folder with all of that; `serve` are further members of that section.
    pub(crate) fn new(allow: &str, serve: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"configurations": {{
                "0": {{"device": "unix:FOLDER/0.sock", "default": true, "state-hook": "FOLDER/hook", "hold": 60,
                    "allow": {allow}}},
                "lab 2": {{"device": "unix:FOLDER/lab.sock"}}
            }}, "serve": {{"users": "FOLDER/users.json", "tokens": "FOLDER/tokens.json"{serve}}}}}"#
        );
        let path = folder.path().display().to_string();
        std::fs::write(
            folder.path().join("config.json"),
            config.replace("FOLDER", &path),
        )
        .unwrap();
        let people = Self { folder };
        people.passwd(&["add", "eva", "--stdin"], &password("eva"));
        people.passwd(&["add", "max", "--stdin"], &password("max"));
        people
    }

    /// Runs `nbd-proxy passwd`; what it printed.
    pub(crate) fn passwd(&self, arguments: &[&str], stdin: &str) -> String {
        passwd(self.folder.path(), arguments, stdin).stdout
    }

    pub(crate) fn serve(self) -> Server {
        Server::again(self.folder)
    }
}

/// Of `eva` and `max`.
pub(crate) fn password(user: &str) -> String {
    format!("correct horse of {user}")
}

/// Runs `nbd-proxy passwd` on the files that the configuration in `folder` names; it must succeed.
pub(crate) fn passwd(folder: &Path, arguments: &[&str], stdin: &str) -> Ran {
    let ran = try_passwd(folder, arguments, stdin);
    assert!(ran.status.success(), "{ran:?}");
    ran
}

/// The same, and may fail.
pub(crate) fn try_passwd(folder: &Path, arguments: &[&str], stdin: &str) -> Ran {
    let mut child = program(folder)
        .arg("passwd")
        .args(arguments)
        .arg("--config")
        .arg(folder.join("config.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may not care for its input.
    let _ = writeln!(child.stdin.take().unwrap(), "{stdin}");
    Ran::of(child.wait_with_output().unwrap())
}

pub(crate) fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-proxy"));
    command
        .env("RUNTIME_DIRECTORY", folder.join("run"))
        .env("STATE_DIRECTORY", folder.join("state"))
        .env_remove("NBD_PROXY_CONFIG")
        .env_remove("SSL_CERT_FILE");
    command
}

/// What a subcommand did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn of(output: std::process::Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The cookie that a response sets, as a browser sends it back.
pub(crate) fn cookie(response: &Response) -> String {
    let header = response.header("set-cookie").expect("a cookie");
    format!("Cookie: {}", header.split(';').next().unwrap())
}

/// A process of ours, which ends with the test.
pub(crate) struct Process {
    child: Child,
    /// What it has said.
    said: Arc<Mutex<String>>,
    listener: Option<thread::JoinHandle<()>>,
}

impl Process {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with_input(command, Stdio::null())
    }

    pub(crate) fn start_with_input(mut command: Command, input: Stdio) -> Self {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said = Arc::<Mutex<String>>::default();
        let listener = thread::spawn({
            let said = Arc::clone(&said);
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap();
                    said.push_str(&line);
                    said.push('\n');
                }
            }
        });
        Self {
            child,
            said,
            listener: Some(listener),
        }
    }

    /// What it has said on standard error so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Waits for its end: the exit status, and what it said on standard error.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = wait_for("the end of a process", || self.child.try_wait().unwrap());
        self.listener.take().unwrap().join().unwrap();
        (status, self.said())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP response with a body of known length.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Self::parse(bytes)
    }

    /// All that was received.
    pub(crate) fn parse(mut bytes: Vec<u8>) -> Self {
        let border = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a head")
            + 4;
        let body = bytes.split_off(border);
        let head = String::from_utf8(bytes).unwrap();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect(&head);
        Self { status, head, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
