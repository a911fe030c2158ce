//! The audit trail: what is told of a session's life, and of those who were turned away.

use std::{path::PathBuf, sync::Arc};

use ring::digest;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    disk::Disk,
    harness::{People, Process, Server, wait_for},
    page::{ID, OTHER_ID, Page, blocking, link},
};

const FILE: &str = r#""audit": "FOLDER/audit.log""#;

fn content() -> Vec<u8> {
    (0..300_001_u32).map(|at| (at % 251) as u8).collect()
}

fn path(server: &Server) -> PathBuf {
    server.folder.path().join("audit.log")
}

fn events(server: &Server) -> Vec<Value> {
    let text = std::fs::read_to_string(path(server)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// Waits for the newest event of that name.
fn event(server: &Server, name: &str) -> Value {
    wait_for(&format!("event {name}"), || {
        events(server)
            .into_iter()
            .rev()
            .find(|event| event["event"] == name)
    })
}

fn names(server: &Server) -> Vec<String> {
    let name = |event: &Value| event["event"].as_str().unwrap().to_owned();
    events(server).iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_told_from_attach_to_end_with_what_was_read() {
    let server = Arc::new(Server::with("\"hold\": 60", FILE));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("evil\\\"name\u{202e}.iso", &content()).await;
    let page = page.serve(&content());
    let attached = blocking(&server, |server| {
        let attached = event(server, "attached");
        Disk::connect(&server.device()).read(0, 4096).unwrap();
        attached
    })
    .await;
    page.lose().await;
    let held = blocking(&server, |server| event(server, "held")).await;
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("evil\\\"name\u{202e}.iso", &content()).await;
    let page = page.serve(&content());
    blocking(&server, |server| event(server, "resumed")).await;
    page.say_bye().await;
    let ended = blocking(&server, |server| event(server, "ended")).await;

    assert_eq!(
        attached["image"],
        json!({"name": "evil\\\"name\u{fffd}.iso", "size": 300_001, "modified": null, "sha256": null})
    );
    let device = server.device().display().to_string();
    for (member, value) in [
        ("user", json!("local")),
        ("configuration", json!("0")),
        ("session", json!(ID)),
        ("device", json!(device)),
        ("read_only", json!(true)),
    ] {
        assert_eq!(attached[member], value, "{attached}");
        assert_eq!(ended[member], value, "{ended}");
    }
    assert!(attached["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(
        held["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty())
    );
    assert_eq!(ended["bytes_read"], 4096);
    assert_eq!(ended["bytes_written"], 0);
    assert_eq!(ended["in_order"], true);
    assert!(ended["duration_ms"].is_u64() && ended["reason"].is_string());
    assert_eq!(
        names(&server),
        ["server_started", "attached", "held", "resumed", "ended"]
    );
}

#[test]
fn a_kept_copy_is_told_with_its_sha256() {
    let server = Server::with("\"keep\": \"memory\"", FILE);
    let image = server.image("a.iso", &content());
    let _sharing =
        Process::start(server.command(&["share", image.to_str().unwrap(), &server.url()]));
    let hash = digest::digest(&digest::SHA256, &content());
    let hash: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(event(&server, "kept")["image"]["sha256"], hash);
    assert!(server.run(&["eject", "0"]).status.success());
    assert_eq!(event(&server, "ended")["image"]["sha256"], hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_link_is_told_with_its_code_and_without_its_secret() {
    let server = Arc::new(Server::with("\"hold\": 60", FILE));
    let secret = [("authorization", "Bearer not-the-token")];
    let mut page = Page::open_with(&server, &link(ID), &secret).await;
    assert_eq!(page.closed().await.0, 4401);
    let refused = blocking(&server, |server| event(server, "link_refused")).await;
    assert_eq!(refused["code"], 4401);
    assert_eq!(refused["user"], json!(null));
    assert_eq!(refused["configuration"], "0");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &content()).await;
    let serving = page.serve(&content());
    blocking(&server, |server| server.wait_for_state("attached")).await;
    assert_eq!(
        Page::open(&server, &link(OTHER_ID)).await.closed().await.0,
        4409
    );
    let refused = blocking(&server, |server| {
        wait_for("a second refusal", || {
            let mut events = events(server).into_iter();
            events.find(|event| event["code"] == 4409)
        })
    })
    .await;
    assert_eq!(
        (&refused["user"], &refused["session"]),
        (&json!("local"), &json!(OTHER_ID))
    );
    serving.close().await;
    let text = std::fs::read_to_string(path(&server)).unwrap();
    assert!(!text.contains("not-the-token") && !text.contains(&server.token));
}

#[test]
fn logins_are_told_and_counted_without_their_secrets() {
    let server = Server::with("\"hold\": 60", FILE);
    let log_in = |token: &str| {
        let body = format!("{{\"token\":\"{token}\"}}");
        server.request("POST", "/api/v1/login", &[], &body)
    };
    assert_eq!(log_in("not-the-token").status, 401);
    let failed = event(&server, "login_failed");
    assert_eq!(failed["user"], json!(null));
    assert!(failed["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    let login = log_in(&server.token);
    let cookie = login
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    assert_eq!(event(&server, "login_succeeded")["user"], "local");
    let cookie = format!("Cookie: {cookie}");
    server.request("POST", "/api/v1/logout", &[&cookie], "");
    assert_eq!(event(&server, "logged_out")["user"], "local");
    let text = std::fs::read_to_string(path(&server)).unwrap();
    assert!(!text.contains("not-the-token") && !text.contains(&server.token));
    let metrics = server.get("/metrics");
    for outcome in ["succeeded", "failed"] {
        let line = format!("nbd_proxy_logins_total{{outcome=\"{outcome}\"}} 1\n");
        assert!(metrics.text().contains(&line), "{}", metrics.text());
    }
}

#[test]
fn who_has_to_wait_after_failed_logins_is_told_of() {
    let server = Server::with("\"hold\": 60", FILE);
    wait_for("a pause", || {
        let response = server.request("POST", "/api/v1/login", &[], r#"{"token": "wrong"}"#);
        (response.status == 429).then_some(())
    });
    let slowed = event(&server, "login_slowed");
    assert_eq!(slowed["method"], "token");
    assert!(slowed["user"].is_null() && slowed["seconds"].as_u64().unwrap() >= 1);
    assert!(slowed["from"].as_str().unwrap().starts_with("127.0.0.1:"));
}

#[test]
fn refusals_of_one_user_fill_no_disk_and_hide_nobody_elses() {
    const MANY: usize = 400;
    let people = People::new(r#"{"look": ["eva", "max"]}"#, &format!(", {FILE}"));
    let [eva, max] = ["eva", "max"].map(|user| {
        let token = people.passwd(&["token", "add", user, "--user", user], "");
        format!("Authorization: Bearer {}", token.trim())
    });
    let server = people.serve();
    let refused = |who: &str| {
        let path = "/api/v1/configurations/0/eject";
        assert_eq!(server.request("POST", path, &[who], "{}").status, 403);
    };
    (0..MANY).for_each(|_| refused(&eva));
    refused(&max);
    let is_maxs = |event: &Value| event["event"] == "eject_refused" && event["user"] == "max";
    wait_for("what max was refused", || {
        events(&server).iter().any(is_maxs).then_some(())
    });
    let omitted = wait_for("what was left out", || {
        refused(&eva);
        let omitted = |event: &Value| event["event"] == "events_omitted";
        events(&server).into_iter().find(omitted)
    });
    assert_eq!(omitted["user"], "eva");
    let told = names(&server);
    let refusals = told.iter().filter(|name| *name == "eject_refused").count();
    assert!(refusals < MANY, "{refusals}");
}

#[test]
fn on_standard_error_there_is_a_line_of_json_beside_the_messages_for_people() {
    let server = Server::with("\"hold\": 60", r#""audit": "stderr""#);
    server.process.signal(Signal::TERM);
    let (_, stderr) = server.process.wait();
    let told: Vec<Value> = stderr
        .lines()
        .filter(|line| !line.starts_with("nbd-proxy: "))
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let names: Vec<_> = told
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["server_started", "server_stopped"]);
    assert_eq!(told[1]["reason"], "SIGTERM");
}

#[test]
fn a_trail_that_cannot_be_written_stops_no_session_and_is_reported_once() {
    let server = Server::with("\"hold\": 60", r#""audit": "FOLDER/audit.log""#);
    event(&server, "server_started");
    // A folder in its place can't be written to, whoever we are.
    std::fs::remove_file(path(&server)).unwrap();
    std::fs::create_dir(path(&server)).unwrap();
    let image = server.image("a.iso", &content());
    for _ in 0..2 {
        let sharing =
            Process::start(server.command(&["share", image.to_str().unwrap(), &server.url()]));
        server.wait_for_state("attached");
        let read = Disk::connect(&server.device()).read_all();
        assert!(read.starts_with(&content()));
        assert!(server.run(&["eject", "0"]).status.success());
        sharing.wait();
    }
    let metrics = server.get("/metrics");
    assert!(
        metrics
            .text()
            .contains("nbd_proxy_audit_lost_events_total 10\n"),
        "{}",
        metrics.text()
    );
    server.process.signal(Signal::TERM);
    let (_, stderr) = server.process.wait();
    assert_eq!(stderr.matches("audit trail").count(), 1, "{stderr}");
}

#[test]
fn a_trail_that_cannot_be_is_refused_at_the_start_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"configurations": {"0": {"device": "auto"}}, "serve": {"audit": "/nonexistent/audit.log"}}"#;
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nbd-proxy"))
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&path)
        .env("RUNTIME_DIRECTORY", folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("/nonexistent/audit.log") && stderr.contains("\"audit\""),
        "{stderr}"
    );
}
