//! Who gets a link, and what the others are told.

use std::io::Read as _;

use crate::{
    disk::Disk,
    harness::Server,
    page::{ID, OTHER_ID, Page, link, until},
};

const IMAGE: &[u8] = &[7; 5000];
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const VERSION: &str = "Sec-WebSocket-Version: 13";

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

async fn refusal(server: &Server, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
    Page::open_with(server, path, headers).await.closed().await
}

/// The status of a hand-made handshake.
fn upgrade(server: &Server, key: &str, more: &[&str]) -> u16 {
    let key = format!("Sec-WebSocket-Key: {key}");
    let headers = [
        &["Connection: Upgrade", "Upgrade: websocket", key.as_str()],
        more,
    ];
    let mut answer = [0; 12];
    let mut connection = server.send("GET", "/nbd/0", &headers.concat(), "");
    connection.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).parse().unwrap()
}

#[tokio::test]
async fn without_a_token_a_link_is_closed_with_4401() {
    let server = Server::start();
    let wrong = bearer("wrong");
    for headers in [
        &[][..],
        &[("authorization", wrong.as_str())],
        &[("cookie", "nbd-proxy-8000=x")],
    ] {
        for path in ["/nbd/0", "/nbd/7", "/", "/vm/0/0"] {
            let (code, reason) = refusal(&server, path, headers).await;
            assert_eq!(code, 4401, "{path} {headers:?}");
            assert!(reason.contains("token"), "{reason}");
        }
    }
    assert!(server.session().is_null());
}

#[tokio::test]
async fn a_wrong_subprotocol_is_echoed_so_that_a_browser_sees_the_4401() {
    let server = Server::start();
    let mut page = Page::open_with(&server, "/nbd/0", &[("sec-websocket-protocol", "wrong")]).await;
    assert_eq!(page.protocol.as_deref(), Some("wrong"));
    assert_eq!(page.closed().await.0, 4401);
}

#[tokio::test]
async fn a_token_as_the_sole_subprotocol_attaches() {
    let server = Server::start();
    let token = server.token.clone();
    let page = Page::open_with(&server, "/nbd/0", &[("sec-websocket-protocol", &token)]).await;
    assert_eq!(page.protocol.as_deref(), Some(token.as_str()));
    let page = page.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    page.close().await;
}

#[tokio::test]
async fn the_cookie_attaches() {
    let server = Server::start();
    let body = format!("{{\"token\":\"{}\"}}", server.token);
    let login = server.request("POST", "/api/v1/login", &[], &body);
    let cookie = login
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    let page = Page::open_with(&server, "/nbd/0", &[("cookie", cookie)]).await;
    let page = page.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    page.close().await;
}

#[tokio::test]
async fn an_unknown_configuration_is_closed_with_4404() {
    let server = Server::start();
    for path in ["/nbd/7", "/vm/1/0", "/nbd/0/1"] {
        let (code, reason) = Page::open(&server, path).await.closed().await;
        assert_eq!(code, 4404, "{path}");
        assert!(!reason.is_empty());
    }
}

#[tokio::test]
async fn a_malformed_session_is_closed_with_1008() {
    let server = Server::start();
    for query in [
        "v=1",
        "v=1&session=short",
        "v=2&session=0123456789abcdef0123456789abcdef",
    ] {
        let (code, _) = Page::open(&server, &format!("/nbd/0?{query}"))
            .await
            .closed()
            .await;
        assert_eq!(code, 1008, "{query}");
    }
}

#[test]
fn a_foreign_origin_or_host_gets_403_before_the_upgrade() {
    let server = Server::start();
    let authorization = format!("Authorization: Bearer {}", server.token);
    let status = |header| upgrade(&server, KEY, &[VERSION, &authorization, header]);
    assert_eq!(status("Origin: http://evil.example"), 403);
    assert_eq!(status("Host: evil.example"), 403);
    assert_eq!(status("Origin: http://127.0.0.1"), 101);
}

#[test]
fn a_malformed_handshake_is_answered_as_the_rfc_says() {
    let server = Server::start();
    assert_eq!(upgrade(&server, KEY, &["Sec-WebSocket-Version: 8"]), 426);
    assert_eq!(upgrade(&server, KEY, &[]), 426);
    assert_eq!(upgrade(&server, "short", &[VERSION]), 400);
    assert_eq!(upgrade(&server, KEY, &[VERSION]), 101);
}

#[tokio::test]
async fn another_session_is_refused_with_4409_while_a_link_lives() {
    let server = Server::start();
    let mut first = Page::open(&server, &link(ID)).await;
    first.announce("first.iso", IMAGE).await;
    let first = first.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    for path in [link(OTHER_ID).as_str(), "/nbd/0", "/", "/vm/0/0"] {
        let (code, reason) = Page::open(&server, path).await.closed().await;
        assert_eq!(code, 4409, "{path}");
        assert!(
            ["local from 127.0.0.1:", "first.iso", " s;", "take it over"]
                .iter()
                .all(|words| reason.contains(words)),
            "{reason}"
        );
    }
    assert_eq!(server.session()["state"], "attached");
    first.close().await;
}

#[tokio::test]
async fn the_same_session_supersedes_its_older_link_with_4412() {
    let server = Server::start();
    let mut older = Page::open(&server, &link(ID)).await;
    older.announce("a.iso", IMAGE).await;
    let older = older.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    let mut newer = Page::open(&server, &link(ID)).await;
    newer.announce("a.iso", IMAGE).await;
    let newer = newer.serve(IMAGE);
    let ended = older.ended().await;
    assert_eq!(ended.code, 4412, "{ended:?}");
    until("the resumed session", || {
        server.session()["state"] == "attached"
    })
    .await;
    newer.close().await;
}

#[tokio::test]
async fn a_held_session_takes_the_same_image_under_another_id_and_refuses_another_image_with_4410()
{
    let server = Server::start();
    let mut first = Page::open(&server, &link(ID)).await;
    first.announce("a.iso", IMAGE).await;
    let first = first.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    first.lose().await;
    until("the hold", || server.session()["state"] == "held").await;
    assert!(server.session()["seconds_left"].as_u64().unwrap() <= 60);

    let mut wrong = Page::open(&server, &link(OTHER_ID)).await;
    wrong.announce("b.iso", &[8; 512]).await;
    let (code, reason) = wrong.closed().await;
    assert_eq!(code, 4410);
    assert!(!reason.is_empty());
    assert_eq!(server.session()["state"], "held");

    let mut second = Page::open(&server, &link(OTHER_ID)).await;
    second.announce("a.iso", IMAGE).await;
    let second = second.serve(IMAGE);
    until("the resumed session", || {
        server.session()["state"] == "attached"
    })
    .await;
    let ended = second.close().await;
    assert!(
        ended
            .texts
            .iter()
            .any(|text| text["type"] == "state" && text["resumed"] == true),
        "{ended:?}"
    );
}

/// Reads the device. A session is attached before it has seen anything of its image, and can compare no more than it
/// has seen.
async fn read_device(server: &Server) {
    let device = server.device();
    let read = move || Disk::connect(&device).read_all();
    let bytes = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(&bytes[..IMAGE.len()], IMAGE);
}

#[tokio::test]
async fn a_held_session_takes_a_plain_link_with_the_same_content_and_no_other() {
    let server = Server::start();
    let mut first = Page::open(&server, &link(ID)).await;
    first.announce("a.iso", IMAGE).await;
    let first = first.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    read_device(&server).await;
    first.lose().await;
    until("the hold", || server.session()["state"] == "held").await;
    for other in [&[7; 5001][..], &[8; 5000]] {
        let wrong = Page::open(&server, "/nbd/0").await.serve(other);
        assert_eq!(wrong.ended().await.code, 4410);
        assert_eq!(server.session()["state"], "held");
    }
    let plain = Page::open(&server, "/nbd/0").await.serve(IMAGE);
    until("the resumed session", || {
        server.session()["state"] == "attached"
    })
    .await;
    plain.close().await;
}

/// The address of a link that may take over.
fn takeover(id: &str) -> String {
    format!("{}&takeover=1", link(id))
}

#[tokio::test]
async fn a_session_is_taken_over_by_who_serves_the_same_image_and_by_nobody_else() {
    let server = Server::start();
    let mut first = Page::open(&server, &link(ID)).await;
    first.announce("a.iso", IMAGE).await;
    let first = first.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    read_device(&server).await;
    let from = server.session()["from"].clone();

    let mut wrong = Page::open(&server, &takeover(OTHER_ID)).await;
    wrong.announce("b.iso", IMAGE).await;
    assert_eq!(wrong.closed().await.0, 4410);
    let mut wrong = Page::open(&server, &takeover(OTHER_ID)).await;
    wrong.announce("a.iso", &[8; 5000]).await;
    assert_eq!(wrong.serve(&[8; 5000]).ended().await.code, 4410);
    let session = server.session();
    assert_eq!(
        (&session["state"], &session["from"]),
        (&"attached".into(), &from)
    );

    let mut second = Page::open(&server, &takeover(OTHER_ID)).await;
    second.announce("a.iso", IMAGE).await;
    let second = second.serve(IMAGE);
    assert_eq!(first.ended().await.code, 4412);
    until("the new peer", || server.session()["from"] != from).await;
    assert_eq!(server.session()["state"], "attached");
    // It is the other one's session from now on.
    let (code, _) = Page::open(&server, &link(ID)).await.closed().await;
    assert_eq!(code, 4409);
    let mut newer = Page::open(&server, &link(OTHER_ID)).await;
    newer.announce("a.iso", IMAGE).await;
    let newer = newer.serve(IMAGE);
    assert_eq!(second.ended().await.code, 4412);
    newer.close().await;
}

#[tokio::test]
async fn a_link_whose_peer_is_silent_is_lost_and_its_ghost_locks_nobody_out() {
    let server = Server::with("\"hold\": 60, \"silence\": 1", "");
    let mut v1 = Page::open(&server, &link(ID)).await;
    v1.announce("a.iso", IMAGE).await;
    let v1 = v1.serve(IMAGE);
    until("the device", || server.session()["state"] == "attached").await;
    let ghost = v1.freeze().await;
    until("the hold", || server.session()["state"] == "held").await;
    let plain = Page::open(&server, "/nbd/0").await.serve(IMAGE);
    until("the resumed session", || {
        server.session()["state"] == "attached"
    })
    .await;
    let second_ghost = plain.freeze().await;
    until("the second hold", || server.session()["state"] == "held").await;
    let mut back = Page::open(&server, &link(ID)).await;
    back.announce("a.iso", IMAGE).await;
    let back = back.serve(IMAGE);
    until("the session", || server.session()["state"] == "attached").await;
    back.close().await;
    drop((ghost, second_ghost));
}

#[tokio::test]
async fn too_many_links_are_refused_with_4429() {
    let server = Server::with("\"hold\": 60", r#""limits": {"links-per-user": 256}"#);
    let mut lingering = Vec::new();
    // None of them answers the server's close frame, so each stays a while.
    let (code, reason) = loop {
        assert!(lingering.len() < 1000, "no limit was met");
        let mut page = Page::open(&server, "/nbd/7").await;
        if lingering.len() < 256 {
            lingering.push(page);
            continue;
        }
        break page.closed().await;
    };
    assert_eq!(code, 4429, "{reason}");
    drop(lingering);
    until("room for links", || {
        server
            .get("/metrics")
            .text()
            .contains("nbd_proxy_refused_links_total{code=\"4429\"} 1")
    })
    .await;
}

#[tokio::test]
async fn text_on_a_plain_link_ends_it() {
    let server = Server::start();
    let mut page = Page::open(&server, "/nbd/0").await;
    page.send_text("hello").await;
    assert_eq!(page.closed().await.0, 1003);
    until("the end of the session", || server.session().is_null()).await;
}
