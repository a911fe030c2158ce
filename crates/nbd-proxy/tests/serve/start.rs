//! Starting: what is refused, and with which remedy.

use std::{net::TcpListener, os::unix::fs::PermissionsExt as _};

use crate::harness::{Process, Server};

#[test]
fn the_address_is_printed_alone_with_the_port_that_was_given_by_the_kernel() {
    let server = Server::start();
    assert_ne!(server.address.port(), 0);
    assert!(server.address.ip().is_loopback());
    assert!(
        server.token.len() >= 32
            && server
                .token
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric())
    );
    assert_ne!(Server::start().token, server.token);
}

#[test]
fn a_port_that_is_taken_is_named_with_the_remedy() {
    let server = Server::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = server.run(&["serve", "--listen", &address]);
    assert_eq!((ran.status.code(), ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr.contains(&address) && ran.stderr.contains("--listen"),
        "{}",
        ran.stderr
    );
}

#[test]
fn listening_beyond_loopback_without_tls_is_refused_with_the_remedy() {
    let server = Server::start();
    let ran = server.run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(ran.stderr.contains("tls-terminated"), "{}", ran.stderr);
}

#[test]
fn a_second_server_with_the_same_control_socket_is_refused() {
    let mut server = Server::start();
    let ran = server.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(ran.stderr.contains("control"), "{}", ran.stderr);
    assert!(server.process.is_running());
    assert!(server.run(&["status"]).status.success());
}

#[test]
fn the_control_socket_is_its_users_alone() {
    let server = Server::start();
    let metadata = std::fs::metadata(server.folder.path().join("run/control.sock")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_control_socket_left_by_a_killed_server_is_replaced() {
    let server = Server::start();
    server.process.signal(rustix::process::Signal::KILL);
    let Server {
        folder, process, ..
    } = server;
    process.wait();
    assert!(folder.path().join("run/control.sock").exists());
    let server = Server::again(folder);
    assert!(server.run(&["status"]).status.success());
}

#[test]
fn status_without_a_server_says_so() {
    let server = Server::start();
    for arguments in [&["status"][..], &["status", "--json"], &["eject", "0"]] {
        let mut command = server.command(arguments);
        command.env("RUNTIME_DIRECTORY", server.folder.path().join("other"));
        let (status, stderr) = Process::start(command).wait();
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("no nbd-proxy serve is running"), "{stderr}");
    }
}

#[test]
fn an_unknown_key_of_the_configuration_is_refused() {
    let server = Server::start();
    let config = server.folder.path().join("wrong.json");
    std::fs::write(
        &config,
        r#"{"configurations": {"0": {"device": "unix:"}}, "serve": {"lisen": []}}"#,
    )
    .unwrap();
    let ran = server.run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(
        ran.stderr.contains("lisen") && ran.stderr.contains("listen"),
        "{}",
        ran.stderr
    );
}
