//! Sessions from attach to eject, as the API and the command line see them.

use std::sync::Arc;

use serde_json::json;

use crate::{
    disk::Disk,
    harness::{Server, wait_for},
    page::{ID, OTHER_ID, Page, blocking, link, until},
};

/// No whole number of sectors.
fn image(seed: u8) -> Vec<u8> {
    (0..100_001u32)
        .map(|position| seed.wrapping_add((position % 251) as u8))
        .collect()
}

fn padded(mut content: Vec<u8>) -> Vec<u8> {
    content.resize(content.len().next_multiple_of(512), 0);
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_link_attaches_its_image_until_it_closes() {
    let server = Arc::new(Server::start());
    for path in ["/nbd/0", "/", "/vm/0/0"] {
        let page = Page::open(&server, path).await.serve(&image(1));
        let session = blocking(&server, |server| server.wait_for_state("attached")).await;
        assert_eq!(session["size"], 100_352);
        assert_eq!(session["image"]["size"], 100_001);
        let mut disk = blocking(&server, |server| Disk::connect(&server.device())).await;
        assert!(disk.export.is_read_only());
        let content = tokio::task::spawn_blocking(move || disk.read_all())
            .await
            .unwrap();
        assert!(content == padded(image(1)), "{path}");
        page.close().await;
        blocking(&server, Server::wait_until_free).await;
        assert!(!server.device().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_shown_with_all_that_is_known_of_it() {
    let server = Arc::new(Server::start());
    let mut page = Page::open(&server, &link(ID)).await;
    page.say(json!({"type": "image", "name": "a.iso", "size": 100_001, "modified": 1_700_000_000_000u64})).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    blocking(&server, |server| Disk::connect(&server.device()).read_all()).await;
    let session = blocking(&server, |server| {
        wait_for("bytes that were read", || {
            Some(server.session()).filter(|session| session["bytes_read"].as_u64() >= Some(100_352))
        })
    })
    .await;
    let device = server.device().display().to_string();
    assert_eq!(
        session["image"],
        json!({"name": "a.iso", "size": 100_001, "modified": 1_700_000_000_000u64})
    );
    assert_eq!(session["device"], device);
    assert_eq!(
        (&session["read_only"], &session["user"]),
        (&json!(true), &json!("local"))
    );
    assert!(session["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(session["requests"].as_u64().unwrap() >= 1);

    let ran = blocking(&server, |server| server.run(&["status"])).await;
    assert!(ran.status.success(), "{ran:?}");
    for word in ["0 (default)", "attached", &device, "a.iso", "lab 2", "free"] {
        assert!(ran.stdout.contains(word), "{word} in {}", ran.stdout);
    }
    let ran = blocking(&server, |server| server.run(&["status", "--json"])).await;
    let shown: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        shown["configurations"][0]["session"]["image"]["name"],
        "a.iso"
    );
    let metrics = server.get("/metrics");
    assert!(
        metrics
            .text()
            .contains("nbd_proxy_sessions{configuration=\"0\",state=\"attached\"} 1"),
        "{}",
        metrics.text()
    );

    let ended = page.close().await;
    let states: Vec<_> = ended
        .texts
        .iter()
        .filter(|text| text["type"] == "state")
        .collect();
    assert!(
        states
            .iter()
            .any(|state| state["phase"] == "attached" && state["device"] == device),
        "{states:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_image_can_be_put_in_after_an_eject() {
    let server = Arc::new(Server::start());
    for (id, seed, by_command) in [(ID, 1, false), (OTHER_ID, 2, true), (ID, 3, false)] {
        let mut page = Page::open(&server, &link(id)).await;
        page.announce("a.iso", &image(seed)).await;
        let page = page.serve(&image(seed));
        blocking(&server, |server| server.wait_for_state("attached")).await;
        let content = blocking(&server, |server| Disk::connect(&server.device()).read_all()).await;
        assert!(content == padded(image(seed)));
        if by_command {
            let ran = blocking(&server, |server| server.run(&["eject", "0"])).await;
            assert!(ran.status.success(), "{ran:?}");
        } else {
            let response = blocking(&server, |server| {
                server.post("/api/v1/configurations/0/eject", "{\"force\":false}")
            })
            .await;
            assert_eq!(
                (response.status, &response.json()["session"]),
                (200, &json!(null))
            );
        }
        let ended = page.ended().await;
        assert_eq!(ended.code, 1000, "{ended:?}");
        let last = ended.texts.last().unwrap();
        assert_eq!(
            (&last["type"], &last["reason"]),
            (&json!("end"), &json!("ejected"))
        );
        assert!(!server.device().exists());
    }
}

#[test]
fn an_empty_configuration_is_as_good_as_ejected_and_an_unknown_one_is_not() {
    let server = Server::start();
    assert!(server.run(&["eject", "lab 2"]).status.success());
    let ran = server.run(&["eject", "7"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(
        ran.stderr.starts_with("nbd-proxy: ") && ran.stderr.contains("\"7\""),
        "{}",
        ran.stderr
    );
    assert_eq!(
        server.post("/api/v1/configurations/7/eject", "{}").status,
        404
    );
    assert_eq!(
        server
            .post("/api/v1/configurations/0/eject", "{\"froce\":true}")
            .status,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_stop_hook_runs_the_configuration_is_draining() {
    let server = Arc::new(Server::start());
    server.write_hook("[ $1 = start ] || while [ ! -e go ]; do sleep 0.02; done");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let ejecting = {
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.post("/api/v1/configurations/0/eject", "{}"))
    };
    blocking(&server, |server| server.wait_for_state("draining")).await;
    let (code, reason) = Page::open(&server, &link(OTHER_ID)).await.closed().await;
    assert_eq!(code, 4409);
    assert!(reason.contains("draining"), "{reason}");
    std::fs::write(server.folder.path().join("go"), "").unwrap();
    assert_eq!(ejecting.await.unwrap().status, 200);
    assert_eq!(page.ended().await.code, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eject_by_force_does_not_wait_for_the_stop_hook_and_says_what_it_left() {
    let server = Arc::new(Server::start());
    server.write_hook("[ $1 = start ] || while [ ! -e go ]; do sleep 0.02; done");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| {
        server.wait_for_state("attached");
        let ran = server.run(&["eject", "0", "--force"]);
        assert!(ran.status.success(), "{ran:?}");
        assert!(
            ran.stdout.contains("the state hook has not finished"),
            "{ran:?}"
        );
        assert_eq!(server.session()["state"], "draining");
        std::fs::write(server.folder.path().join("go"), "").unwrap();
        server.wait_until_free();
    })
    .await;
    assert_eq!(page.ended().await.code, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_hook_that_fails_ends_the_session_with_the_reason() {
    let server = Arc::new(Server::start());
    server.write_hook("[ $1 = stop ]");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let ended = page.serve(&image(1)).ended().await;
    assert_ne!(ended.code, 1000);
    let last = ended.texts.last().unwrap();
    assert_eq!(
        (&last["type"], &last["reason"]),
        (&json!("end"), &json!("failed")),
        "{ended:?}"
    );
    assert!(last["message"].as_str().unwrap().contains("hook"), "{last}");
    blocking(&server, Server::wait_until_free).await;
    let metrics = server.get("/metrics");
    let line = "nbd_proxy_ended_sessions_total{configuration=\"0\",outcome=\"failed\"} 1";
    assert!(metrics.text().contains(line), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_not_held_takes_its_device_away() {
    let server = Arc::new(Server::with("\"hold\": 0", ""));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let mut disk = blocking(&server, |server| Disk::connect(&server.device())).await;
    page.lose().await;
    blocking(&server, Server::wait_until_free).await;
    let read =
        tokio::task::spawn_blocking(move || std::panic::catch_unwind(move || disk.read(0, 512)))
            .await
            .unwrap();
    assert!(!matches!(read, Ok(Ok(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_hold_has_passed_what_waits_fails_and_the_stop_hook_runs() {
    let server = Arc::new(Server::with("\"hold\": 1", ""));
    server.write_hook("echo $1 $NBD_PROXY_REASON >>calls");
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let mut disk = blocking(&server, |server| Disk::connect(&server.device())).await;
    page.lose().await;
    blocking(&server, |server| server.wait_for_state("held")).await;
    let reading = tokio::task::spawn_blocking(move || disk.read(0, 512));
    assert_eq!(
        reading.await.unwrap().unwrap_err().errno,
        nbd::wire::Errno::EIO
    );
    blocking(&server, Server::wait_until_free).await;
    let calls = std::fs::read_to_string(server.folder.path().join("calls")).unwrap();
    assert_eq!(calls, "start attached\nstop hold-expired\n");
    assert!(!server.device().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_while_the_session_is_held() {
    let server = Arc::new(Server::start());
    let mut first = Page::open(&server, &link(ID)).await;
    first.announce("a.iso", &image(1)).await;
    let first = first.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    let mut disk = blocking(&server, |server| Disk::connect(&server.device())).await;
    first.lose().await;
    blocking(&server, |server| server.wait_for_state("held")).await;
    let reading = tokio::task::spawn_blocking(move || disk.read(512, 1024));
    let mut second = Page::open(&server, &link(ID)).await;
    second.announce("a.iso", &image(1)).await;
    let second = second.serve(&image(1));
    assert!(reading.await.unwrap().unwrap() == image(1)[512..1536]);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_configurations_are_attached_at_once() {
    let server = Arc::new(Server::start());
    let first = Page::open(&server, "/nbd/0").await.serve(&image(1));
    let second = Page::open(&server, "/nbd/lab%202").await.serve(&image(2));
    blocking(&server, |server| {
        server.wait_for_state("attached");
        let lab = server.folder.path().join("lab.sock");
        wait_for("the second device", || lab.exists().then_some(()));
        assert!(Disk::connect(&server.device()).read_all() == padded(image(1)));
        assert!(Disk::connect(&lab).read_all() == padded(image(2)));
        assert!(Disk::connect(&lab).read(100_351, 1).is_ok());
    })
    .await;
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_all_sessions_in_order() {
    let server = Server::start();
    server.write_hook("echo $1 $NBD_PROXY_REASON >> hook.log");
    let server = Arc::new(server);
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    server.process.signal(rustix::process::Signal::TERM);
    let ended = page.ended().await;
    assert_eq!(ended.code, 1001, "{ended:?}");
    assert_eq!(ended.texts.last().unwrap()["reason"], "shutdown");
    let Ok(Server {
        folder, process, ..
    }) = Arc::try_unwrap(server)
    else {
        panic!("somebody still has the server")
    };
    let (status, stderr) = tokio::task::spawn_blocking(|| process.wait())
        .await
        .unwrap();
    assert!(status.success(), "{stderr}");
    let log = std::fs::read_to_string(folder.path().join("hook.log")).unwrap();
    assert_eq!(
        log.lines()
            .map(|line| line.split(' ').next().unwrap())
            .collect::<Vec<_>>(),
        ["start", "stop"]
    );
    assert!(!folder.path().join("run/control.sock").exists());
    assert!(!folder.path().join("0.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait_for_a_hook() {
    let server = Server::start();
    server.write_hook("[ $1 = start ] || { exec 2>/dev/null; sleep 10; }");
    let server = Arc::new(server);
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    blocking(&server, |server| server.wait_for_state("attached")).await;
    server.process.signal(rustix::process::Signal::INT);
    until("the end of listening", || {
        std::net::TcpStream::connect(server.address).is_err()
    })
    .await;
    server.process.signal(rustix::process::Signal::TERM);
    page.ended().await;
    let Ok(Server { process, .. }) = Arc::try_unwrap(server) else {
        panic!("somebody still has the server")
    };
    let (status, stderr) = tokio::task::spawn_blocking(|| process.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("SIGTERM once more"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eject_names_who_uses_the_device_and_force_does_not_ask() {
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("skipped: this machine has no FUSE, and a socket device is never in use");
        return;
    }
    let server = Arc::new(Server::with_device(
        "fuse:FOLDER/disk.img",
        "\"hold\": 60",
        "",
    ));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    let user = blocking(&server, |server| {
        server.wait_for_state("attached");
        let user = std::fs::File::open(server.folder.path().join("disk.img")).unwrap();
        let response = server.post("/api/v1/configurations/0/eject", "");
        let answer = response.json();
        assert_eq!(response.status, 409, "{answer}");
        let who = format!("process {}", std::process::id());
        assert!(
            answer["users"][0].as_str().unwrap().contains(&who),
            "{answer}"
        );
        assert!(answer["error"].as_str().unwrap().contains(&who), "{answer}");
        let ran = server.run(&["eject", "0"]);
        assert_eq!(ran.status.code(), Some(1));
        assert!(ran.stderr.contains(&who), "{}", ran.stderr);
        assert_eq!(server.session()["state"], "attached");
        let ran = server.run(&["eject", "0", "--force"]);
        assert!(ran.status.success(), "{ran:?}");
        user
    })
    .await;
    drop(user);
    blocking(&server, Server::wait_until_free).await;
    let ended = page.ended().await;
    assert_eq!(ended.texts.last().unwrap()["reason"], "ejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_automatic_device_is_one_that_works_here_and_no_failed_try_ends_it() {
    let server = Arc::new(Server::with_device("auto", "\"hold\": 60", ""));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &image(1)).await;
    let page = page.serve(&image(1));
    let response = blocking(&server, |server| {
        let device = server.wait_for_state("attached")["device"].clone();
        assert!(std::path::Path::new(device.as_str().unwrap()).exists());
        server.post("/api/v1/configurations/0/eject", "")
    })
    .await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(page.ended().await.code, 1000);
}
