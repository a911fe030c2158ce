//! Attacks on what somebody may do.

use serde_json::{Value, json};

use crate::{
    harness::{People, Server},
    page::{ID, OTHER_ID, Page, link, until},
};

const CONTENT: [u8; 4096] = [7; 4096];
/// `eva` may do everything; `max` may begin and look, `ina` may go on and look, `pia` may look.
const ALLOW: &str = r#"{
    "attach": ["eva", "max"], "resume": ["eva", "ina"], "eject": ["eva"], "look": ["pia"]
}"#;

/// Somebody with a token for programs.
struct Holder {
    user: &'static str,
    token: String,
}

impl Holder {
    fn header(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }

    fn get(&self, server: &Server, path: &str) -> (u16, String) {
        let response = server.request("GET", path, &[&self.header()], "");
        (response.status, response.text().to_owned())
    }

    fn eject(&self, server: &Server, name: &str) -> (u16, Value) {
        let path = format!("/api/v1/configurations/{name}/eject");
        let response = server.request("POST", &path, &[&self.header()], "{}");
        (response.status, response.json())
    }

    async fn open(&self, server: &Server, path: &str) -> Page {
        let authorization = format!("Bearer {}", self.token);
        Page::open_with(server, path, &[("authorization", &authorization)]).await
    }
}

fn start<const N: usize>(allow: &str, users: [&'static str; N]) -> (Server, [Holder; N]) {
    let people = People::new(allow, "");
    let holders = users.map(|user| Holder {
        user,
        token: people
            .passwd(&["token", "add", user, "--user", user], "")
            .trim()
            .to_owned(),
    });
    (people.serve(), holders)
}

async fn attached(server: &Server, holder: &Holder, id: &str) -> crate::page::Serving {
    let mut page = holder.open(server, &link(id)).await;
    page.announce("a.iso", &CONTENT).await;
    let serving = page.serve(&CONTENT);
    until("an attached session", || {
        let (_, text) = holder.get(server, "/api/v1/configurations/0");
        serde_json::from_str::<Value>(&text).unwrap()["session"]["state"] == "attached"
    })
    .await;
    serving
}

/// Defence: rights are asked for when a session begins.
#[tokio::test]
async fn attaching_with_the_right_to_look() {
    let (server, holders) = start(ALLOW, ["pia", "ina"]);
    for holder in &holders {
        let mut page = holder.open(&server, &link(ID)).await;
        page.announce("a.iso", &CONTENT).await;
        let (code, reason) = page.closed().await;
        assert_eq!(code, 4401, "{reason}");
        assert!(
            reason.contains(holder.user) && reason.contains("\"attach\""),
            "{reason}"
        );
    }
}

/// Defence: nobody is allowed what nobody was given.
#[tokio::test]
async fn a_configuration_without_allow() {
    let (server, [eva]) = start(ALLOW, ["eva"]);
    let mut page = eva.open(&server, "/nbd/lab%202").await;
    let (code, reason) = page.closed().await;
    assert_eq!(code, 4404, "{reason}");
    assert!(!reason.contains("0\", \"lab"), "{reason}");
    let (status, body) = eva.eject(&server, "lab%202");
    assert_eq!(status, 404, "{body}");
}

/// Defence: the right to eject is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn ejecting_with_the_right_to_attach() {
    let (server, [eva, max, pia]) = start(ALLOW, ["eva", "max", "pia"]);
    let serving = attached(&server, &eva, ID).await;
    for holder in [&max, &pia] {
        let (status, body) = holder.eject(&server, "0");
        assert_eq!(status, 403, "{body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains("\"eject\""), "{error}");
    }
    assert_eq!(eva.eject(&server, "0").0, 200);
    drop(serving);
}

/// Defence: a session is its user's, whatever ID a link brings.
#[tokio::test(flavor = "multi_thread")]
async fn resuming_somebody_elses_session() {
    let (server, [eva, max, ina]) = start(ALLOW, ["eva", "max", "ina"]);
    let _serving = attached(&server, &eva, ID).await;
    for holder in [&max, &ina] {
        for path in [link(ID), format!("{}&takeover=1", link(OTHER_ID))] {
            let mut page = holder.open(&server, &path).await;
            page.announce("a.iso", &CONTENT).await;
            let (code, reason) = page.closed().await;
            assert_eq!(code, 4409, "{reason}");
        }
    }
}

/// Defence: going on with a session of one's own, or taking it over, is a right too.
#[tokio::test(flavor = "multi_thread")]
async fn resuming_without_the_right() {
    let (server, [max]) = start(ALLOW, ["max"]);
    let _serving = attached(&server, &max, ID).await;
    for path in [link(ID), format!("{}&takeover=1", link(OTHER_ID))] {
        let mut page = max.open(&server, &path).await;
        page.announce("a.iso", &CONTENT).await;
        let (code, reason) = page.closed().await;
        assert_eq!(code, 4401, "{reason}");
        assert!(reason.contains("\"resume\""), "{reason}");
    }
}

/// Defence: what somebody may not look at is nowhere to be found.
#[tokio::test(flavor = "multi_thread")]
async fn looking_without_the_right() {
    let (server, [eva, stranger]) = start(ALLOW, ["eva", "stranger"]);
    let _serving = attached(&server, &eva, ID).await;
    let (status, text) = stranger.get(&server, "/api/v1/configurations");
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &shown["configurations"]), (200, &json!([])));
    assert_eq!(shown["user"], "stranger");
    let (status, text) = stranger.get(&server, "/api/v1/configurations/0");
    assert_eq!(status, 404);
    assert!(!text.contains("lab"), "{text}");
    let (_, metrics) = stranger.get(&server, "/metrics");
    assert!(!metrics.contains("configuration="), "{metrics}");
    let (_, metrics) = eva.get(&server, "/metrics");
    assert!(metrics.contains("configuration=\"0\"") && !metrics.contains("lab 2"));
    let mut page = stranger.open(&server, &link(OTHER_ID)).await;
    let (code, reason) = page.closed().await;
    assert_eq!(code, 4404);
    assert!(!reason.contains("lab"), "{reason}");
}

/// Defence: what is told of rights is told to their holder.
#[test]
fn everybody_is_told_their_own_rights() {
    let (server, holders) = start(ALLOW, ["eva", "max", "ina", "pia"]);
    for (holder, may) in holders.iter().zip([
        json!(["attach", "resume", "eject", "look"]),
        json!(["attach", "look"]),
        json!(["resume", "look"]),
        json!(["look"]),
    ]) {
        let (_, text) = holder.get(&server, "/api/v1/configurations");
        let shown: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["configurations"][0]["may"], may, "{}", holder.user);
        assert_eq!(shown["configurations"].as_array().unwrap().len(), 1);
    }
}
