//! A sandbox is of a thread and those that it starts: each test enters one on a thread of its own.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use super::*;

/// Does something in the sandbox of a server that needs `needs`.
fn inside<T: Send + 'static>(needs: Needs, act: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        let in_force = enter(&needs).unwrap();
        assert!(in_force.seccomp, "{in_force}");
        act()
    });
    thread.join().unwrap()
}

fn status(field: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim().to_owned()
}

#[test]
fn no_program_is_started() {
    let error = inside(Needs::nothing(), || Command::new("/bin/true").status()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn no_capability_is_left_that_is_not_needed() {
    let fields = ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"];
    let sets = inside(Needs::nothing(), move || fields.map(status));
    assert_eq!(sets, ["0000000000000000"; 4]);
}

#[test]
fn privileges_cannot_come_back_and_calls_are_filtered() {
    let fields = ["NoNewPrivs:", "Seccomp:"];
    assert_eq!(
        inside(Needs::nothing(), move || fields.map(status)),
        ["1", "2"]
    );
}

#[test]
fn a_thread_that_is_started_inside_is_inside() {
    let status = inside(Needs::nothing(), || {
        thread::spawn(|| status("Seccomp:")).join().unwrap()
    });
    assert_eq!(status, "2");
}

#[test]
fn only_files_that_are_needed_are_reached() {
    if trial().unwrap().landlock.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (folder.path().join("ours"), folder.path().join("other"));
    for directory in [&ours, &other] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("file"), "content").unwrap();
    }
    let needs = Needs {
        write: vec![ours.clone()],
        ..Needs::nothing()
    };
    let results = inside(needs, move || {
        [
            fs::write(ours.join("part"), "new"),
            fs::rename(ours.join("part"), ours.join("file")),
            fs::read(ours.join("file")).map(drop),
            fs::remove_file(ours.join("file")),
            fs::read(other.join("file")).map(drop),
            fs::write(other.join("part"), "new"),
            fs::remove_file(other.join("file")),
            File::open("/etc/passwd").map(drop),
        ]
        .map(|result| result.map_err(|error| error.kind()))
    });
    assert_eq!(results[..4], [Ok(()); 4]);
    assert_eq!(results[4..], [Err(ErrorKind::PermissionDenied); 4]);
}

#[test]
fn no_connection_is_made_and_no_other_port_is_taken() {
    if trial().unwrap().landlock.is_none_or(|version| version < 4) {
        return;
    }
    let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = somebody.local_addr().unwrap();
    let results = inside(Needs::nothing(), move || {
        [
            TcpStream::connect(address).map(drop),
            TcpListener::bind("127.0.0.1:0").map(drop),
        ]
        .map(|result| result.unwrap_err().kind())
    });
    assert_eq!(results, [ErrorKind::PermissionDenied; 2]);
}
