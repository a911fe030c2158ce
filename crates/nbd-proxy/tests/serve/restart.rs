//! What a new server makes of what another one left. Kernel devices, with which it goes on, take a guest (tests/guest).

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{Process, Server, wait_for};

/// A server with a session on a socket, whose hook writes down its calls.
fn attached() -> (Server, Process) {
    let server = Server::start();
    attach(server)
}

fn attach(server: Server) -> (Server, Process) {
    server.write_hook("echo $1 $NBD_PROXY_REASON >>calls");
    let image = server.image("a.iso", &[7; 5000]);
    let sharing =
        Process::start(server.command(&["share", image.to_str().unwrap(), &server.url()]));
    server.wait_for_state("attached");
    (server, sharing)
}

fn kill(server: Server, sharing: Process) -> TempDir {
    sharing.signal(Signal::KILL);
    sharing.wait();
    server.process.signal(Signal::KILL);
    let Server {
        folder, process, ..
    } = server;
    process.wait();
    folder
}

fn calls(server: &Server) -> String {
    let path = server.folder.path().join("calls");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Ends a server; gives what it said.
fn stop(server: Server) -> String {
    server.process.signal(Signal::TERM);
    let (status, stderr) = server.process.wait();
    assert!(status.success(), "{stderr}");
    stderr
}

fn record(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("run/0.session");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

#[test]
fn what_was_left_is_cleaned_up_at_once_though_nobody_comes() {
    let (server, sharing) = attached();
    let folder = kill(server, sharing);
    assert!(folder.path().join("0.sock").exists());
    let server = Server::again(folder);
    wait_for("the end of the clean-up", || {
        (calls(&server).ends_with("stop recovered\n") && !server.device().exists()).then_some(())
    });
    assert_eq!(calls(&server), "start attached\nstop recovered\n");
    assert!(server.session().is_null());
    let stderr = stop(server);
    for words in ["stop: calling it now", "removed the socket"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

#[test]
fn a_stop_that_a_killed_server_began_is_over_before_it_runs_again() {
    let (server, sharing) = attached();
    server.write_hook(
        "echo begin >>calls; while [ ! -e go ]; do sleep 0.02; done; sleep 0.3; echo end >>calls",
    );
    sharing.signal(Signal::INT);
    wait_for("stop", || calls(&server).contains("begin").then_some(()));
    // Its standard error lasts as long as its helper, so its end is not waited for.
    server.process.signal(Signal::KILL);
    let Server {
        folder, process, ..
    } = server;
    drop((process, sharing));
    let server = Server::again(folder);
    wait_for("the next server", || {
        let said = server.process.said();
        said.contains("calling it now").then_some(())
    });
    std::fs::write(server.folder.path().join("go"), "").unwrap();
    wait_for("the end of the clean-up", || {
        (calls(&server).matches("end").count() == 2).then_some(())
    });
    assert_eq!(calls(&server), "start attached\nbegin\nend\nbegin\nend\n");
    stop(server);
}

#[test]
fn a_session_on_a_socket_is_not_noted() {
    let (server, _sharing) = attached();
    assert!(!record(&server.folder).exists());
    stop(server);
}

#[test]
fn a_record_that_is_of_no_use_is_told_and_removed() {
    let of_image = r#"{"image": {"name": "a.iso", "size": 4096, "modified": 1}, "announced": true,
        "export": {"name": "", "description": null, "size": 4096, "flags": 3, "block_sizes": null},
        "seen": {"key": 1, "edges": [], "blocks": [], "reads": 0}}"#;
    let of_session = format!(
        r#"{{"id": "0f", "device": "/dev/nbd0", "peer": {{"user": "local", "from": "x", "session": null}},
        "since": 1, "bytes_read": 0, "requests": 0, "hook_users": [], "snapshot": {of_image}}}"#
    );
    let whole = format!(r#"{{"version": 1, "session": {of_session}}}"#);
    for (text, reason) in [
        (r#"{"version": 99, "session": {}}"#, "another version"),
        (r#"{"version": 1, "session": {}}"#, "damaged"),
        (&whole[..whole.len() / 2], "damaged"),
        ("", "damaged"),
        (&whole, "/dev/nbd0 is not attached any more"),
    ] {
        let server = Server::start();
        server.process.signal(Signal::KILL);
        let Server {
            folder, process, ..
        } = server;
        process.wait();
        let path = record(&folder);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let server = Server::again(folder);
        wait_for("the end of the record", || (!path.exists()).then_some(()));
        let stderr = stop(server);
        assert!(stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn what_is_left_of_a_configuration_that_is_no_more_is_removed_and_told() {
    let folder = Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "");
    let run = record(&folder).parent().unwrap().to_path_buf();
    for file in ["gone.lock", "gone.session", "gone.state"] {
        std::fs::write(run.join(file), "").unwrap();
    }
    let server = Server::again(folder);
    wait_for("the word of the hook", || {
        let said = server.process.said();
        said.contains("was not told to stop").then_some(())
    });
    assert!(!run.join("gone.session").exists());
    let stderr = stop(server);
    let said = "left of configuration \"gone\", which there is no more: ";
    assert!(stderr.contains(said), "{stderr}");
}

/// Has a server end that leaves what it can to the next one, as `options` and `signal` say.
fn make_way(options: &[&str], signal: Signal) -> String {
    let Server {
        folder, process, ..
    } = Server::start();
    process.signal(Signal::TERM);
    process.wait();
    let address = ([127, 0, 0, 1], 0).into();
    let server = Server::again_as(folder, address, "http", options);
    let (server, sharing) = attach(server);
    let device = server.device();
    server.process.signal(signal);
    let Server {
        folder, process, ..
    } = server;
    let (status, stderr) = process.wait();
    assert!(status.success(), "{stderr}");
    assert!(!device.exists());
    let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(calls, "start attached\nstop shutdown\n");
    let (_, shared) = sharing.wait();
    assert!(shared.contains("the server is stopping"), "{shared}");
    stderr
}

#[test]
fn sessions_that_cannot_be_kept_end_in_order() {
    for (options, signal) in [
        (&["--keep-sessions"][..], Signal::TERM),
        (&[], Signal::USR1),
    ] {
        let stderr = make_way(options, signal);
        assert!(stderr.contains("leaving kernel devices"), "{stderr}");
    }
}
