//! Starting: what is refused, and with which remedy.

use std::{net::TcpListener, os::unix::fs::PermissionsExt as _};

use crate::harness::{People, Process, Server, wait_for};

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
fn people_who_all_come_from_one_proxy_are_warned_of_with_the_remedy() {
    let warned = |serve: &str| {
        let server = People::new(r#"["eva"]"#, serve).serve();
        let config = server.folder.path().join("config.json");
        let checked = server.run(&["check", "--config", config.to_str().unwrap()]);
        server.process.signal(rustix::process::Signal::TERM);
        let said = server.process.wait().1;
        [said, checked.stdout].map(|text| text.contains("\"trusted-proxies\": {\"addresses\""))
    };
    assert_eq!(warned(r#", "tls-terminated": true"#), [true; 2]);
    let proxies = r#", "tls-terminated": true, "trusted-proxies": {"addresses": ["127.0.0.1"]}"#;
    assert_eq!(warned(proxies), [false; 2]);
    assert_eq!(warned(""), [false; 2]);
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
    let other = server.folder.path().join("other");
    for arguments in [&["status"][..], &["status", "--json"], &["eject", "0"]] {
        let mut command = server.command(arguments);
        command.env("RUNTIME_DIRECTORY", &other);
        let (status, stderr) = Process::start(command).wait();
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("no nbd-proxy serve is running"), "{stderr}");
    }
    assert!(!other.exists(), "who only asks makes no folder");
}

#[test]
fn messages_are_json_for_who_wants_them_so() {
    let server = Server::start();
    for (form, severity, message) in [
        ("json", "error", "can't read the configuration"),
        ("yaml", "", "$NBD_PROXY_LOG is \"yaml\"; it has to be"),
    ] {
        let mut command = server.command(&["serve", "--config", "/nonexistent"]);
        command.env("NBD_PROXY_LOG", form);
        let (status, stderr) = Process::start(command).wait();
        assert_eq!(status.code(), Some(1));
        assert!(
            stderr.contains(message) && stderr.lines().count() == 1,
            "{stderr}"
        );
        let json: Option<serde_json::Value> = serde_json::from_str(&stderr).ok();
        let told = json.as_ref().and_then(|line| line["severity"].as_str());
        assert_eq!(told.unwrap_or_default(), severity, "{stderr}");
    }
}

#[test]
fn a_path_too_long_for_the_control_socket_is_refused_with_the_remedy() {
    let server = Server::start();
    let path = server.folder.path().join("x".repeat(108));
    let path = path.to_str().unwrap();
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["status"]] {
        let ran = server.run(&[arguments, &["--control", path]].concat());
        assert_eq!(ran.status.code(), Some(1));
        assert!(
            ran.stderr.contains("at most 107 bytes with --control"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn of_servers_that_start_at_once_one_has_the_control_socket() {
    let server = Server::start();
    let folder = server.folder.path().join("shared");
    let mut starting: Vec<_> = (0..4)
        .map(|_| {
            let mut command = server.command(&["serve", "--listen", "127.0.0.1:0"]);
            command
                .env("RUNTIME_DIRECTORY", &folder)
                .env("NBD_PROXY_CONFIG", server.folder.path().join("config.json"));
            Process::start(command)
        })
        .collect();
    wait_for("all but one to end", || {
        (starting
            .iter_mut()
            .filter_map(|one| one.is_running().then_some(()))
            .count()
            == 1)
            .then_some(())
    });
    let mut command = server.command(&["status"]);
    command.env("RUNTIME_DIRECTORY", &folder);
    assert!(
        wait_for("an answer", || command
            .output()
            .ok()
            .filter(|ran| ran.status.success()))
        .status
        .success()
    );
}

#[test]
fn a_cause_is_told_once() {
    let server = Server::start();
    let ran = server.run(&["serve", "--config", "/nonexistent"]);
    assert_eq!(
        ran.stderr.matches("No such file").count(),
        1,
        "{}",
        ran.stderr
    );
}

#[test]
fn what_this_machine_cannot_do_is_logged_as_it_is_told() {
    let server = Server::start();
    std::fs::write(server.device(), "mine").unwrap();
    let image = server.image("disk.img", b"content");
    let ran = server.run(&["share", image.to_str().unwrap(), &server.url()]);
    assert_eq!(ran.status.code(), Some(1));
    server.process.signal(rustix::process::Signal::TERM);
    let (_, log) = server.process.wait();
    for told in [ran.stderr, log] {
        assert!(told.contains("is not a socket; remove it"), "{told}");
        assert!(!told.contains("left by an earlier"), "{told}");
    }
    assert_eq!(
        std::fs::read(server.folder.path().join("0.sock")).unwrap(),
        b"mine"
    );
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
