//! Under a service manager: what it is told, and the sockets that it passes.

use std::{
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Command, Stdio},
};

use crate::harness::{PATIENCE, Process, Server, program, uninterrupted};

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    /// Waits until it is told `word`, and gives the message that it was in.
    fn is_told(&self, word: &str) -> String {
        loop {
            let mut message = [0; 4096];
            let length = uninterrupted(|| self.0.recv(&mut message)).expect(word);
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if message.lines().any(|line| line == word) {
                return message;
            }
        }
    }
}

#[test]
fn the_manager_is_told_that_it_is_ready_alive_and_stopping() {
    let folder = Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "");
    let socket = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    manager.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = program(folder.path());
    command
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "300000")
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(folder.path().join("config.json"));
    let server = Server::of(folder, Process::start(command), "http");

    let ready = manager.is_told("READY=1");
    assert!(
        ready.contains(&format!("STATUS=Listening on {}", server.address)),
        "{ready}"
    );
    manager.is_told("WATCHDOG=1");
    manager.is_told("WATCHDOG=1");
    server.process.signal(rustix::process::Signal::TERM);
    let stopping = manager.is_told("STOPPING=1");
    assert!(stopping.contains("STATUS=SIGTERM"), "{stopping}");
    assert!(server.process.wait().0.success());
}

/// `serve` with a socket as its third descriptor, as `sd_listen_fds(3)` has it.
fn with_socket(socket: OwnedFd, arguments: &[&str]) -> (tempfile::TempDir, Process) {
    let folder = Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "");
    let mut shell = program(folder.path());
    let program = shell.get_program().to_owned();
    let variables: Vec<_> = shell
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    shell = Command::new("sh");
    shell
        .envs(variables)
        .env_remove("NBD_PROXY_CONFIG")
        .args([
            "-c",
            "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --config \"$@\" 3<&0 </dev/null",
        ])
        .arg(program)
        .arg(folder.path().join("config.json"))
        .args(arguments);
    let process = Process::start_with_input(shell, Stdio::from(socket));
    (folder, process)
}

#[test]
fn a_socket_that_is_passed_on_is_listened_at_instead_of_what_is_configured() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (folder, process) = with_socket(listener.into(), &["--listen", "127.0.0.1:1"]);
    let server = Server::of(folder, process, "http");
    assert_eq!(server.address, address);
    assert_eq!(server.get("/api/v1/configurations").status, 200);
}

#[test]
fn a_socket_that_is_passed_on_is_judged_as_one_of_our_own() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let (_folder, process) = with_socket(listener.into(), &[]);
    let (status, said) = process.wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        said.contains("can be reached from other machines"),
        "{said}"
    );
}

#[test]
fn a_socket_that_is_no_tcp_listener_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let datagram = UnixDatagram::bind(folder.path().join("socket")).unwrap();
    let (_folder, process) = with_socket(datagram.into(), &[]);
    let (status, said) = process.wait();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("ListenStream="), "{said}");
}
