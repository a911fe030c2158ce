//! `share` against `serve`.

use std::{os::unix::fs::FileExt as _, sync::Arc};

use nbd::wire::Errno;

use crate::{
    disk::Disk,
    harness::{People, Process, Server},
    page::{ID, Page, link},
};

fn content(length: u32) -> Vec<u8> {
    (0..length).map(|position| (position % 253) as u8).collect()
}

fn share(server: &Server, image: &str, url: &str) -> Process {
    let path = server.folder.path().join(image);
    Process::start(server.command(&["share", path.to_str().unwrap(), url]))
}

#[test]
fn a_shared_file_is_the_device_until_sigint() {
    let server = Server::start();
    // Longer than one request and no whole number of sectors.
    let image = content(9_000_001);
    server.image("a.iso", &image);
    let sharing = share(&server, "a.iso", &server.url());
    let session = server.wait_for_state("attached");
    assert_eq!(session["image"]["name"], "a.iso");
    assert!(session["image"]["modified"].as_u64().is_some());
    let mut disk = Disk::connect(&server.device());
    let read = disk.read_all();
    assert_eq!(read.len(), 9_000_448);
    assert!(read[..image.len()] == image && read[image.len()..].iter().all(|byte| *byte == 0));
    sharing.signal(rustix::process::Signal::INT);
    let (status, stderr) = sharing.wait();
    assert!(status.success(), "{stderr}");
    assert!(
        stderr.lines().all(|line| line.starts_with("nbd-proxy: ")),
        "{stderr}"
    );
    assert!(
        stderr.contains("attached as") && stderr.contains("were read"),
        "{stderr}"
    );
    assert!(stderr.lines().count() <= 6, "{stderr}");
    server.wait_until_free();
}

#[test]
fn a_link_s_address_with_a_token_names_its_configuration() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let url = format!("ws://{}/nbd/lab%202", server.address);
    let path = server.folder.path().join("a.iso");
    let arguments = [
        "share",
        path.to_str().unwrap(),
        &url,
        "--token",
        &server.token,
        "--name",
        "other.iso",
    ];
    let sharing = Process::start(server.command(&arguments));
    let lab = crate::harness::wait_for("the device", || {
        let lab = server.get("/api/v1/configurations/lab%202").json();
        (lab["session"]["state"] == "attached").then_some(lab)
    });
    assert_eq!(lab["session"]["image"]["name"], "other.iso");
    sharing.signal(rustix::process::Signal::TERM);
    assert!(sharing.wait().0.success());
}

#[test]
fn an_eject_is_told_and_is_no_failure() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    assert!(server.run(&["eject", "0"]).status.success());
    let (status, stderr) = sharing.wait();
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("ejected"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_in_words_and_exits_with_1() {
    let server = Arc::new(Server::start());
    server.image("a.iso", &content(5000));
    server.image("empty.iso", b"");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("first.iso", &[1; 512]).await;
    let page = page.serve(&[1; 512]);
    crate::page::blocking(&server, |server| {
        server.wait_for_state("attached");
        let address = server.address;
        for (image, url, word) in [
            ("a.iso", server.url(), "first.iso"),
            ("a.iso", format!("http://{address}/"), "not allowed"),
            (
                "a.iso",
                format!("http://{address}/#token=wrong"),
                "not allowed",
            ),
            (
                "a.iso",
                format!("ws://{address}/nbd/0#token=wrong"),
                "not allowed",
            ),
            (
                "a.iso",
                format!("ws://{address}/nbd/7#token={}", server.token),
                "there is no configuration",
            ),
            (
                "a.iso",
                "http://127.0.0.1:1/#token=x".to_owned(),
                "can't connect",
            ),
            ("a.iso", "ftp://x/".to_owned(), "begins with"),
            ("empty.iso", server.url(), "empty"),
            ("missing.iso", server.url(), "can't open"),
        ] {
            let path = server.folder.path().join(image);
            let ran = server.run(&["share", path.to_str().unwrap(), &url]);
            assert_eq!(ran.status.code(), Some(1), "{image} {url}: {ran:?}");
            assert!(ran.stderr.contains(word), "{image} {url}: {}", ran.stderr);
            assert!(!ran.stderr.contains(&server.token));
        }
    })
    .await;
    page.close().await;
}

#[test]
fn a_file_that_was_cut_off_gives_an_error_and_a_message_not_wrong_bytes() {
    let server = Server::start();
    let path = server.image("a.iso", &content(1 << 20));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let mut disk = Disk::connect(&server.device());
    assert!(disk.read(0, 512).is_ok());
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert_eq!(disk.read(1 << 19, 512).unwrap_err().errno, Errno::EIO);
    assert_eq!(disk.read(1 << 18, 512).unwrap_err().errno, Errno::EIO);
    sharing.signal(rustix::process::Signal::INT);
    let (status, stderr) = sharing.wait();
    assert!(status.success(), "{stderr}");
    assert_eq!(stderr.matches("shorter").count(), 1, "{stderr}");
}

#[test]
fn a_file_that_was_changed_gives_an_error_not_two_images_mixed() {
    let server = Server::start();
    let path = server.image("a.iso", &content(1 << 20));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let mut disk = Disk::connect(&server.device());
    assert!(disk.read(0, 512).is_ok());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"changed", 1000).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5))
        .unwrap();
    assert_eq!(disk.read(1 << 19, 512).unwrap_err().errno, Errno::EIO);
    sharing.signal(rustix::process::Signal::INT);
    assert!(sharing.wait().1.contains("changed since"));
}

#[test]
fn the_server_going_away_in_order_is_told() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    server.process.signal(rustix::process::Signal::TERM);
    let (_, stderr) = sharing.wait();
    assert!(stderr.contains("the server is stopping"), "{stderr}");
}

#[test]
fn another_share_takes_over_when_told_to() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let first = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let path = server.folder.path().join("a.iso");
    let arguments = ["share", path.to_str().unwrap(), &server.url()];
    let refused = server.run(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("in use by local"), "{refused:?}");
    let second = Process::start(server.command(&[&arguments[..], &["--takeover"]].concat()));
    let (status, stderr) = first.wait();
    assert!(
        status.success() && stderr.contains("taken over"),
        "{stderr}"
    );
    assert!(Disk::connect(&server.device()).read_all()[..5000] == content(5000));
    second.signal(rustix::process::Signal::INT);
    assert!(second.wait().0.success());
}

#[test]
fn a_killed_server_is_looked_for_until_the_hold_has_passed() {
    let server = Server::with(r#""hold": 2"#, "");
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    server.process.signal(rustix::process::Signal::KILL);
    let (status, stderr) = sharing.wait();
    assert_eq!(status.code(), Some(1));
    for words in [
        "the link is lost",
        "reconnecting, ",
        "gave up",
        "can't connect",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

#[test]
fn its_login_ends_with_it() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let logins = || {
        let path = server.folder.path().join("state/logins.json");
        let text = std::fs::read(path).unwrap();
        let saved: serde_json::Value = serde_json::from_slice(&text).unwrap();
        saved["logins"].as_array().unwrap().len()
    };
    assert_eq!(logins(), 1);
    sharing.signal(rustix::process::Signal::INT);
    assert!(sharing.wait().0.success());
    assert_eq!(logins(), 0);
}

#[test]
fn a_server_that_keeps_no_logins_is_shown_the_token_again() {
    let people = People::new(r#"["ci"]"#, r#", "state-dir": "FOLDER/nowhere""#);
    let token = people.passwd(&["token", "add", "build", "--user", "ci"], "");
    let mut server = people.serve();
    server.token = token.trim().to_owned();
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let token = server.token.clone();
    let mut server = server.restart();
    server.token = token;
    server.wait_for_state("attached");
    assert!(Disk::connect(&server.device()).read_all()[..5000] == content(5000));
    // It was told once that its cookie is good for nothing, and a token that is revoked is not shown for ever.
    server.passwd(&["token", "revoke", "build"], "");
    let (status, stderr) = sharing.wait();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("not allowed"), "{stderr}");
}

#[test]
fn a_server_that_was_killed_and_started_anew_has_the_image_again() {
    let server = Server::start();
    server.image("a.iso", &content(5000));
    let sharing = share(&server, "a.iso", &server.url());
    server.wait_for_state("attached");
    let token = server.token.clone();
    let server = server.restart();
    assert_ne!(server.token, token);
    server.wait_for_state("attached");
    assert!(Disk::connect(&server.device()).read_all()[..5000] == content(5000));
    sharing.signal(rustix::process::Signal::INT);
    let (status, stderr) = sharing.wait();
    assert!(status.success(), "{stderr}");
}
