//! A copy of the image is kept, so that the one who serves it may go.

use std::{path::PathBuf, sync::Arc};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    disk::Disk,
    harness::{Process, Server, wait_for},
    page::{ID, OTHER_ID, Page, blocking, link},
};

const IN_FOLDER: &str = r#""hold": 0, "keep": "FOLDER/kept""#;
const IN_MEMORY: &str = r#""hold": 0, "keep": "memory""#;

/// No whole number of sectors, nor of blocks.
fn content() -> Vec<u8> {
    (0..5_000_001_u32)
        .map(|position| (position % 253) as u8)
        .collect()
}

fn server(members: &str) -> Server {
    let server = Server::with(members, "");
    std::fs::create_dir(server.folder.path().join("kept")).unwrap();
    server
}

fn share(server: &Server) -> Process {
    let path = server.image("a.iso", &content());
    Process::start(server.command(&["share", path.to_str().unwrap(), &server.url()]))
}

fn wait_until_whole(server: &Server) -> Value {
    wait_for("the copy", || {
        Some(server.session()["keep"].clone()).filter(|keep| keep["whole"] == true)
    })
}

fn copies(server: &Server) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(server.folder.path().join("kept")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn assert_reads_all(server: &Server) {
    let read = Disk::connect(&server.device()).read_all();
    let content = content();
    assert!(read[..content.len()] == content);
    assert!(read[content.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn once_the_copy_is_whole_the_sharer_may_be_killed() {
    let server = server(IN_FOLDER);
    let sharing = share(&server);
    server.wait_for_state("attached");
    let keep = wait_until_whole(&server);
    let expected = json!({"bytes": 5_000_001, "size": 5_000_001, "whole": true, "seconds_left": null, "problem": null});
    assert_eq!(keep, expected);
    sharing.signal(Signal::KILL);
    sharing.wait();
    assert_reads_all(&server);
    assert_eq!(server.session()["state"], "attached");
    assert_eq!(copies(&server).len(), 1);
    assert!(server.run(&["eject", "0"]).status.success());
    server.wait_until_free();
    assert!(copies(&server).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn once_the_copy_is_whole_the_page_may_close_and_come_back() {
    let server = Arc::new(server(IN_MEMORY));
    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &content()).await;
    let page = page.serve(&content());
    blocking(&server, |server| {
        server.wait_for_state("attached");
        wait_until_whole(server)
    })
    .await;
    let ended = page.close().await;
    let told = |text: &Value| text["type"] == "state" && text["keep"]["whole"] == true;
    assert!(ended.texts.iter().any(told), "{:?}", ended.texts);
    blocking(&server, assert_reads_all).await;

    let mut other = Page::open(&server, &link(OTHER_ID)).await;
    other.announce("b.iso", b"something else").await;
    assert_eq!(other.closed().await.0, 4410);
    let mut again = Page::open(&server, &link(OTHER_ID)).await;
    again.announce("a.iso", &content()).await;
    let again = again.serve(&content());
    again.lose().await;

    blocking(&server, assert_reads_all).await;
    let mut last = Page::open(&server, &link(OTHER_ID)).await;
    last.announce("a.iso", &content()).await;
    let last = last.serve(&content());
    assert_eq!(last.say_bye().await.code, 1000);
    blocking(&server, Server::wait_until_free).await;
}

#[test]
fn without_room_the_image_is_streamed_and_the_reason_is_told() {
    let limited = r#""hold": 0, "keep": {"in": "FOLDER/kept", "limit": 5000000}"#;
    let server = server(limited);
    let sharing = share(&server);
    server.wait_for_state("attached");
    let keep = wait_for("the refusal", || {
        Some(server.session()["keep"].clone()).filter(|keep| keep["problem"].is_string())
    });
    assert!(
        keep["problem"].as_str().unwrap().contains("limit"),
        "{keep}"
    );
    assert_eq!(keep["whole"], false);
    assert!(copies(&server).is_empty());
    assert_reads_all(&server);
    sharing.signal(Signal::KILL);
    server.wait_until_free();
}

#[test]
fn the_copy_of_a_killed_server_is_deleted_at_the_next_start() {
    let server = server(IN_FOLDER);
    let _sharing = share(&server);
    server.wait_for_state("attached");
    wait_until_whole(&server);
    let left = copies(&server);
    assert_eq!(left.len(), 1);
    server.process.signal(Signal::KILL);
    let Server {
        folder, process, ..
    } = server;
    process.wait();
    let server = Server::again(folder);
    let _sharing = share(&server);
    server.wait_for_state("attached");
    wait_until_whole(&server);
    let now = copies(&server);
    assert!(now.len() == 1 && now != left, "{now:?}");
}
