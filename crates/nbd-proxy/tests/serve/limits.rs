//! What the server takes on, and what it says to those who come when there is no room.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use crate::{
    disk::Disk,
    harness::{People, Response, Server, uninterrupted, wait_for},
    page::{ID, OTHER_ID, Page, Serving, blocking, link},
};

const IMAGE: &[u8] = &[7; 5000];

fn limited(limits: &str) -> Server {
    Server::with("\"hold\": 60", &format!("\"limits\": {{{limits}}}"))
}

/// A connection that stays open, on which `GET /healthz` was answered.
fn idle(server: &Server) -> TcpStream {
    let mut stream = server.send("GET", "/healthz", &["Connection: keep-alive"], "");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

/// A stream of events, of which the head has come.
fn events(server: &Server) -> TcpStream {
    let authorization = format!("Authorization: Bearer {}", server.token);
    let mut stream = server.send("GET", "/api/v1/events", &[&authorization], "");
    stream.read_exact(&mut [0; 12]).unwrap();
    stream
}

fn assert_names(refusal: &Response, key: &str) {
    assert_eq!(refusal.status, 429, "{refusal:?}");
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    let sentence = refusal.json()["error"].as_str().unwrap().to_owned();
    assert!(sentence.contains(&format!("\"{key}\"")), "{sentence}");
}

#[test]
fn who_comes_when_all_connections_are_idle_gets_the_place_of_the_first() {
    let server = limited("\"connections\": 2");
    let (mut first, mut second) = (idle(&server), idle(&server));
    assert_eq!(server.get("/healthz").status, 200);
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    second
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    // The rest of its first answer comes before.
    let mut answer: Vec<u8> = Vec::new();
    while !answer
        .windows(15)
        .any(|window| window == b"HTTP/1.1 200 OK")
    {
        let mut buffer = [0; 1000];
        let length = uninterrupted(|| second.read(&mut buffer)).unwrap();
        assert!(length > 0, "it has lost its place");
        answer.extend(&buffer[..length]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_connections_are_busy_is_told_the_limit() {
    let server = Arc::new(limited("\"connections\": 2"));
    let streams = blocking(&server, |server| (events(server), events(server))).await;
    let refusal = blocking(&server, |server| server.get("/healthz")).await;
    assert_names(&refusal, "connections");
    let (code, reason) = Page::open(&server, &link(ID)).await.closed().await;
    assert_eq!(code, 4429);
    assert!(reason.contains("\"connections\""), "{reason}");
    drop(streams);
    let metrics = blocking(&server, |server| {
        wait_for("a place", || {
            Some(server.get("/metrics")).filter(|answer| answer.status == 200)
        })
    })
    .await;
    assert!(
        metrics
            .text()
            .contains("nbd_proxy_limit_reached_total{limit=\"connections\"}")
    );
}

#[test]
fn more_event_streams_than_the_limit_are_refused_until_one_has_ended() {
    let server = limited("\"events\": 1");
    let stream = events(&server);
    assert_names(&server.get("/api/v1/events"), "events");
    drop(stream);
    wait_for("a place", || {
        let authorization = format!("Authorization: Bearer {}", server.token);
        let mut stream = server.send("GET", "/api/v1/events", &[&authorization], "");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        (&answer == b"HTTP/1.1 200").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn more_links_than_the_limit_are_closed_with_4429() {
    let server = Arc::new(limited("\"links\": 1"));
    let serving = Page::open(&server, "/nbd/0").await.serve(IMAGE);
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let (code, reason) = Page::open(&server, "/nbd/lab%202").await.closed().await;
    assert_eq!(code, 4429);
    assert!(reason.contains("\"links\""), "{reason}");
    serving.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_takes_neither_all_links_nor_all_event_streams() {
    let limits = r#", "limits": {"links-per-user": 1, "events-per-user": 1}"#;
    let people = People::new(r#"["eva", "max"]"#, limits);
    let [eva, max] = ["eva", "max"].map(|user| {
        let token = people.passwd(&["token", "add", user, "--user", user], "");
        format!("Bearer {}", token.trim())
    });
    let server = Arc::new(people.serve());
    let open = async |who: &str| {
        let headers = [("authorization", who)];
        Page::open_with(&server, "/nbd/0", &headers).await
    };
    let serving = open(&eva).await.serve(IMAGE);
    wait_for("a device", || server.device().exists().then_some(()));
    let (code, reason) = open(&eva).await.closed().await;
    assert_eq!(code, 4429);
    assert!(reason.contains("\"links-per-user\""), "{reason}");
    let (code, reason) = open(&max).await.closed().await;
    assert_eq!(code, 4409, "{reason}");
    let ask = |who: &str| {
        let authorization = format!("Authorization: {who}");
        let mut stream = server.send("GET", "/api/v1/events", &[&authorization], "");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        (stream, answer)
    };
    let first = ask(&eva);
    assert_eq!(&first.1, b"HTTP/1.1 200");
    assert_eq!(&ask(&eva).1, b"HTTP/1.1 429");
    assert_eq!(&ask(&max).1, b"HTTP/1.1 200");
    serving.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_sessions_than_the_limit_are_refused_and_those_that_are_go_on() {
    let server = Arc::new(limited("\"sessions\": 1"));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", IMAGE).await;
    let serving = page.serve(IMAGE);
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let path = format!("/nbd/lab%202?session={OTHER_ID}&v=1");
    let (code, reason) = Page::open(&server, &path).await.closed().await;
    assert_eq!(code, 4429);
    assert!(reason.contains("\"sessions\""), "{reason}");
    // The session itself may lose and find its link.
    serving.lose().await;
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", IMAGE).await;
    let serving = page.serve(IMAGE);
    blocking(&server, |server| server.wait_for_state("attached")).await;
    serving.say_bye().await;
    blocking(&server, Server::wait_until_free).await;
    let serving = Page::open(&server, "/nbd/lab%202").await.serve(IMAGE);
    serving.close().await;
}

#[test]
fn a_limit_that_leaves_no_room_at_all_is_refused_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let config =
        r#"{"configurations": {"0": {"device": "auto"}}, "serve": {"limits": {"links": 0}}}"#;
    std::fs::write(&path, config).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nbd-proxy"))
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&path)
        .env("RUNTIME_DIRECTORY", folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("serve.limits.links"), "{stderr}");
}

#[test]
fn memory_that_is_less_than_the_sessions_need_is_refused_with_its_key() {
    for (limits, expected) in [
        (r#""memory": 1000000"#, false),
        (r#""sessions": 4, "memory": 33554432"#, true),
        (r#""sessions": 5, "memory": 33554432"#, false),
        (r#""sessions": 1000"#, true),
    ] {
        let folder = Server::folder("auto", "\"hold\": 60", &format!("\"limits\": {{{limits}}}"));
        let mut command = crate::harness::program(folder.path());
        // It is read before the address is refused.
        command.args(["serve", "--listen", "192.0.2.1:0", "--config"]);
        command.arg(folder.path().join("config.json"));
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let refused = stderr.contains("serve.limits.memory") && stderr.contains("8 MiB for each");
        assert_eq!(refused, !expected, "{limits}: {stderr}");
    }
}

/// Of an image, bytes: less than what one session may have in memory when it has all for itself.
const LARGE: usize = 24 << 20;
/// What all sessions may have in memory, bytes, and how much else the server may need for them.
const MEMORY: u64 = 32 << 20;
const SLACK: u64 = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_the_memory_that_there_is() {
    let limits = format!(r#""sessions": 4, "memory": {MEMORY}"#);
    let folder = tempfile::tempdir().unwrap();
    let configurations: Vec<_> = (0..4)
        .map(|number| {
            let socket = folder.path().join(format!("{number}.sock"));
            format!(r#""{number}": {{"device": "unix:{}"}}"#, socket.display())
        })
        .collect();
    let config = format!(
        r#"{{"configurations": {{{}}}, "serve": {{"limits": {{{limits}}}}}}}"#,
        configurations.join(",")
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let server = Arc::new(Server::again(folder));
    let before = resident(&server);
    let mut pages = Vec::new();
    for number in 0..4 {
        let page = Page::open(&server, &format!("/nbd/{number}")).await;
        pages.push(page.serve(&vec![u8::try_from(number).unwrap(); LARGE]));
        blocking(&server, move |server| {
            let socket = server.folder.path().join(format!("{number}.sock"));
            wait_for("the device", || socket.exists().then_some(()));
            assert_eq!(Disk::connect(&socket).read_all().len(), LARGE);
        })
        .await;
    }
    let growth = resident(&server).saturating_sub(before);
    assert!(growth < MEMORY + SLACK, "{growth} bytes");
    for page in pages {
        page.close().await;
    }
}

const SESSIONS: usize = 64;
const IDLE: usize = 500;
/// Of each session, bytes; no whole number of sectors.
const SIZE: usize = 300_001;
/// How much the server may grow by: 64 sessions and 500 connections, with what the allocator holds back.
const GROWTH: u64 = 256 << 20;

fn content(seed: usize) -> Vec<u8> {
    (0..SIZE)
        .map(|at| u8::try_from((at + seed * 7) % 251).unwrap())
        .collect()
}

/// Of the server's memory, what is resident, in bytes.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// What the machine reads of a session, which is served on.
async fn serve_and_read(server: Arc<Server>, number: usize) -> (Serving, Vec<u8>) {
    let page = Page::open(&server, &format!("/nbd/{number}")).await;
    let serving = page.serve(&content(number));
    let read = blocking(&server, move |server| {
        let socket = server.folder.path().join(format!("{number}.sock"));
        wait_for("the device", || socket.exists().then_some(()));
        Disk::connect(&socket).read_all()
    });
    (serving, read.await)
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sessions_at_once_are_served_beside_five_hundred_idle_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut configurations = String::new();
    for number in 0..SESSIONS {
        let socket = folder.path().join(format!("{number}.sock"));
        write!(
            configurations,
            r#""{number}": {{"device": "unix:{}"}},"#,
            socket.display()
        )
        .unwrap();
    }
    let config = format!(
        r#"{{"configurations": {{{}}}, "serve": {{"audit": "{}"}}}}"#,
        configurations.trim_end_matches(','),
        folder.path().join("audit.log").display()
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let server = Arc::new(Server::again(folder));
    let before = resident(&server);
    let connections: Vec<_> = (0..IDLE)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| tokio::spawn(serve_and_read(Arc::clone(&server), number)))
        .collect();
    let mut reads = Vec::new();
    for session in sessions {
        reads.push(session.await.unwrap());
    }
    let growth = resident(&server).saturating_sub(before);
    for (number, (_, read)) in reads.iter().enumerate() {
        assert!(read.starts_with(&content(number)), "session {number}");
    }
    assert!(growth < GROWTH, "{growth} bytes");
    assert_eq!(connections.len(), IDLE);
    for (serving, _) in reads {
        serving.close().await;
    }
    let attached = std::fs::read_to_string(server.folder.path().join("audit.log")).unwrap();
    assert_eq!(attached.matches("\"event\":\"attached\"").count(), SESSIONS);
}
