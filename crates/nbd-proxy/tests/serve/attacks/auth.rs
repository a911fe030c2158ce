//! Attacks on who somebody is.

use serde_json::json;

use super::arena;
use crate::{
    harness::{People, Response, Server, cookie, password, wait_for},
    page::{ID, Page, link},
};

const OPENING: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn status(server: &Server, headers: &[&str]) -> u16 {
    server
        .request("GET", "/api/v1/configurations", headers, "")
        .status
}

fn open(server: &Server, headers: &[&str]) -> u16 {
    let headers = [&OPENING, headers].concat();
    // A WebSocket that opens stays open, so only the first line is waited for.
    let mut stream = server.send("GET", &link(ID), &headers, "");
    let mut line = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut line).unwrap();
    std::str::from_utf8(&line[9..]).unwrap().parse().unwrap()
}

fn eject(server: &Server, headers: &[&str], body: &str) -> Response {
    server.request("POST", "/api/v1/configurations/0/eject", headers, body)
}

/// A server that believes a proxy at our address, so that a test may come from anywhere.
fn behind_a_proxy() -> Server {
    let proxies = r#", "trusted-proxies": {"addresses": ["127.0.0.1"]}"#;
    People::new(r#"["eva"]"#, proxies).serve()
}

fn guess(server: &Server, user: &str, from: &str) -> Response {
    server.try_password(
        user,
        "wrong password",
        &[&format!("X-Forwarded-For: {from}")],
    )
}

/// Defence: a login makes a cookie of its own, whatever the browser brought.
#[test]
fn session_fixation() {
    let server = Server::start();
    let name = format!("nbd-proxy-{}", server.address.port());
    let planted = format!("Cookie: {name}=0123456789012345678901234567890123456789");
    let body = json!({ "token": server.token }).to_string();
    let response = server.request("POST", "/api/v1/login", &[&planted], &body);
    assert_ne!(cookie(&response), planted);
    assert_eq!(status(&server, &[&cookie(&response)]), 200);
    assert_eq!(status(&server, &[&planted]), 401);
}

/// Defence: logging out ends the login on the server, and what it has opened.
#[tokio::test]
async fn a_cookie_that_was_stolen_before_its_user_logged_out() {
    let server = Server::start();
    let stolen = server.log_in();
    let value = stolen.strip_prefix("Cookie: ").unwrap();
    let mut page = Page::open_with(&server, &link(ID), &[("cookie", value)]).await;
    let _ = server.request("POST", "/api/v1/logout", &[&stolen], "");
    let (code, reason) = page.closed().await;
    assert_eq!(code, 4401, "{reason}");
    assert_eq!(status(&server, &[&stolen]), 401);
}

/// Defence: the Origin of a WebSocket is checked before anything else.
#[test]
fn cross_site_websocket_hijacking() {
    let server = Server::start();
    let cookie = server.log_in();
    for origin in [
        "http://evil.example",
        "https://127.0.0.1.evil.example",
        "null",
    ] {
        assert_eq!(open(&server, &[&cookie, &format!("Origin: {origin}")]), 403);
    }
    let ours = format!("Origin: http://{}", server.address);
    assert_eq!(open(&server, &[&cookie, &ours]), 101);
}

/// Defence: over TLS no page is ours that came without it, as one that somebody on the way has written.
#[test]
fn hijacking_by_a_page_that_came_without_tls() {
    let proxies = r#", "tls-terminated": true, "trusted-proxies": {"addresses": ["127.0.0.1"]}"#;
    let server = People::new(r#"["eva"]"#, proxies).serve();
    let tls = "X-Forwarded-Proto: https";
    let right = server.try_password("eva", &password("eva"), &[tls]);
    let cookie = cookie(&right);
    let written = format!("Origin: http://{}", server.address);
    assert_eq!(open(&server, &[tls, &cookie, &written]), 403);
    assert_eq!(eject(&server, &[tls, &cookie, &written], "{}").status, 403);
    let ours = format!("Origin: https://{}", server.address);
    assert_eq!(open(&server, &[tls, &cookie, &ours]), 101);
}

/// Defence: where a browser sends no Origin, its Sec-Fetch-Site is looked at.
#[test]
fn a_cross_site_request_without_an_origin() {
    let server = Server::start();
    let cookie = server.log_in();
    for (site, expected) in [
        ("cross-site", 403),
        ("same-site", 403),
        ("same-origin", 200),
        ("none", 200),
    ] {
        let site = format!("Sec-Fetch-Site: {site}");
        assert_eq!(status(&server, &[&cookie, &site]), expected, "{site}");
        assert_eq!(eject(&server, &[&cookie, &site], "{}").status, expected);
        let opened = open(&server, &[&cookie, &site]);
        assert_eq!(opened == 101, expected == 200, "{site}");
    }
    // A link from elsewhere opens the page.
    let site = "Sec-Fetch-Site: cross-site";
    assert_eq!(server.request("GET", "/", &[site], "").status, 200);
}

/// Defence: the Host has to be a name of ours.
#[test]
fn dns_rebinding() {
    let server = Server::start();
    let cookie = server.log_in();
    let rebound = ["Host: evil.example", "Origin: http://evil.example", &cookie];
    assert_eq!(status(&server, &rebound), 403);
    assert_eq!(open(&server, &rebound), 403);
    assert_eq!(eject(&server, &rebound, "{}").status, 403);
    let body = json!({ "token": server.token }).to_string();
    let login = server.request("POST", "/api/v1/login", &rebound, &body);
    assert_eq!((login.status, login.header("set-cookie")), (403, None));
}

/// Defence: a body has to be of a type that no form can send.
#[test]
fn csrf_by_a_form() {
    let server = Server::start();
    let cookie = server.log_in();
    let body = json!({ "token": server.token }).to_string();
    for form in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        let form = format!("Content-Type: {form}");
        assert_eq!(
            eject(&server, &[&cookie, &form], "{}").status,
            415,
            "{form}"
        );
        for path in ["/api/v1/login", "/api/v1/logout"] {
            let response = server.request("POST", path, &[&cookie, &form], &body);
            assert_eq!(response.status, 415, "{path} {form}");
            assert_eq!(response.header("set-cookie"), None);
        }
    }
    let json = "Content-Type: Application/JSON; charset=utf-8";
    assert_eq!(eject(&server, &[&cookie, json], "{}").status, 200);
}

/// Defence: one answer for both, and a hash that is compared with in any case (`serve::auth::tests`).
#[test]
fn user_enumeration() {
    let server = behind_a_proxy();
    let wrong = guess(&server, "eva", "192.0.2.1");
    assert_eq!(wrong.status, 401);
    for (number, nobody) in ["nobody", "local", "*", "", "eva "].into_iter().enumerate() {
        let unknown = guess(&server, nobody, &format!("192.0.2.{}", 10 + number));
        assert_eq!(
            (unknown.status, unknown.text()),
            (401, wrong.text()),
            "{nobody}"
        );
    }
}

/// Defence: after a few failures an address waits longer and longer, whatever it sends then.
#[test]
fn brute_force_from_one_address() {
    let server = behind_a_proxy();
    let attacker = "2001:db8::1";
    let refused = wait_for("a refusal", || {
        Some(guess(&server, "eva", attacker)).filter(|response| response.status == 429)
    });
    assert!(
        refused
            .header("retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    assert!(
        refused.json()["error"]
            .as_str()
            .unwrap()
            .contains("try again in")
    );
    let neighbour = "X-Forwarded-For: 2001:db8::ffff";
    let right = server.try_password("max", &password("max"), &[neighbour]);
    assert_eq!(right.status, 429);
    let elsewhere = "X-Forwarded-For: 2001:db8:0:1::1";
    let right = server.try_password("eva", &password("eva"), &[elsewhere]);
    assert_eq!(right.status, 204);
}

/// Defence: failures to be one user are counted wherever they come from; but the user gets in from where they did before.
#[test]
fn brute_force_from_many_addresses_and_a_lockout_by_it() {
    let server = behind_a_proxy();
    let home = "X-Forwarded-For: 192.0.2.1";
    let sign_in = |from: &str| server.try_password("eva", &password("eva"), &[from]).status;
    assert_eq!(sign_in(home), 204);
    let mut number = 0;
    wait_for("a refusal", || {
        number += 1;
        let refused = guess(&server, "eva", &format!("198.51.100.{number}")).status == 429;
        refused.then_some(())
    });
    assert_eq!(sign_in("X-Forwarded-For: 203.0.113.1"), 429);
    assert_eq!(sign_in(home), 204);
    let other = server.try_password("max", &password("max"), &["X-Forwarded-For: 203.0.113.1"]);
    assert_eq!(other.status, 204);
}

/// Defence: one password is checked at a time, few may wait, and no session waits with them.
#[test]
fn a_flood_of_logins() {
    let mut server = behind_a_proxy();
    let cookie = server.sign_in("eva");
    let token = server.passwd(&["token", "add", "page", "--user", "eva"], "");
    server.token = token.trim().to_owned();
    wait_for("the token", || {
        let bearer = format!("Authorization: Bearer {}", server.token);
        (status(&server, &[&bearer]) == 200).then_some(())
    });
    let mut session = arena::attach(&server);
    let attempts: Vec<_> = (0..256)
        .map(|number| {
            let body = json!({"user": format!("user{number}"), "password": "wrong"}).to_string();
            let from = format!("X-Forwarded-For: 198.51.100.{number}");
            server.send("POST", "/api/v1/login", &[&from], &body)
        })
        .collect();
    assert_eq!(status(&server, &[&cookie]), 200);
    for _ in 0..8 {
        assert!(session.read_all() == *arena::image(arena::SIZE));
    }
    let memory = arena::memory(&server);
    assert!(memory < arena::MEMORY, "{memory} bytes in use");
    let answers: Vec<_> = attempts.into_iter().map(Response::read).collect();
    let count = |status| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert_eq!(count(401) + count(429), answers.len());
    let busy = answers.iter().find(|answer| answer.status == 429);
    assert!(busy.unwrap().header("retry-after").is_some());
}

/// Defence: only listed addresses speak for others, and nobody makes others `local`.
#[test]
fn a_proxys_header_from_somebody_else() {
    let with = |addresses: &str| {
        let proxies = format!(
            r#", "trusted-proxies": {{"addresses": ["{addresses}"], "user-header": "X-Remote-User"}}"#
        );
        People::new(r#"["eva"]"#, &proxies).serve()
    };
    let untrusted = with("192.0.2.1");
    assert_eq!(status(&untrusted, &["X-Remote-User: eva"]), 401);
    let forwarded = ["X-Remote-User: eva", "X-Forwarded-For: 192.0.2.1"];
    assert_eq!(status(&untrusted, &forwarded), 401);
    let trusted = with("127.0.0.1");
    assert_eq!(status(&trusted, &["X-Remote-User: eva"]), 200);
    for nobody in ["local", "*", "", "-eva"] {
        let header = format!("X-Remote-User: {nobody}");
        assert_eq!(status(&trusted, &[&header]), 401, "{nobody}");
    }
    let twice = ["X-Remote-User: eva", "X-Remote-User: max"];
    assert_eq!(status(&trusted, &twice), 401);
}

/// Defence: what a client says of its address counts only where a proxy of ours has said it.
#[tokio::test]
async fn a_forged_address() {
    let forged = [("x-forwarded-for", "203.0.113.9")];
    for (server, expected) in [
        (Server::start(), "127.0.0.1:"),
        (behind_a_proxy(), "203.0.113.9"),
    ] {
        let token = match server.token.is_empty() {
            false => server.token.clone(),
            true => {
                let token = server.passwd(&["token", "add", "ci", "--user", "eva"], "");
                let token = token.trim().to_owned();
                wait_for("the token", || {
                    let header = format!("Authorization: Bearer {token}");
                    (status(&server, &[&header]) == 200).then_some(())
                });
                token
            }
        };
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str()), forged[0]];
        let mut page = Page::open_with(&server, &link(ID), &headers).await;
        page.announce("a.iso", &[1; 4096]).await;
        let header = format!("Authorization: {authorization}");
        let view = wait_for("a session", || {
            let response = server.request("GET", "/api/v1/configurations/0", &[&header], "");
            Some(response.json()["session"].clone()).filter(|session| !session.is_null())
        });
        assert!(
            view["from"].as_str().unwrap().starts_with(expected),
            "{view}"
        );
    }
}

/// Defence: tokens end when they are said to, or are revoked, with the logins and the links that came of them.
#[tokio::test]
async fn a_revoked_token() {
    let people = People::new(r#"["ci"]"#, "");
    let token = people.passwd(&["token", "add", "build", "--user", "ci"], "");
    let token = token.trim().to_owned();
    let server = people.serve();
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(status(&server, &[&bearer]), 200);
    let body = json!({ "token": token }).to_string();
    let traded = cookie(&server.request("POST", "/api/v1/login", &[], &body));
    assert_eq!(status(&server, &[&traded]), 200);
    let headers = [("sec-websocket-protocol", token.as_str())];
    let mut page = Page::open_with(&server, &link(ID), &headers).await;
    assert_eq!(page.protocol.as_deref(), Some(token.as_str()));
    server.passwd(&["token", "revoke", "build"], "");
    let (code, reason) = page.closed().await;
    assert_eq!(code, 4401, "{reason}");
    assert_eq!(status(&server, &[&bearer]), 401);
    assert_eq!(status(&server, &[&traded]), 401);
}

/// Defence: the time of a token is looked at whenever it is shown.
#[test]
fn an_expired_token() {
    let people = People::new(r#"["ci"]"#, "");
    let add = ["token", "add", "build", "--user", "ci", "--expires", "1"];
    let token = people.passwd(&add, "");
    let server = people.serve();
    let bearer = format!("Authorization: Bearer {}", token.trim());
    assert_eq!(status(&server, &[&bearer]), 200);
    let traded = {
        let body = json!({ "token": token.trim() }).to_string();
        cookie(&server.request("POST", "/api/v1/login", &[], &body))
    };
    let path = server.folder.path().join("tokens.json");
    let mut tokens: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    tokens["tokens"]["build"]["expires"] = json!(1);
    std::fs::write(&path, tokens.to_string()).unwrap();
    wait_for("the end of the token", || {
        (status(&server, &[&bearer]) == 401).then_some(())
    });
    assert_eq!(status(&server, &[&traded]), 401);
}

/// Defence: a cookie is good for as long as its user is there and has the password it was given for.
#[test]
fn a_cookie_of_a_user_who_was_removed_or_has_another_password() {
    let server = People::new(r#"["eva", "max"]"#, "").serve();
    let (eva, max) = (server.sign_in("eva"), server.sign_in("max"));
    server.passwd(&["remove", "eva"], "");
    server.passwd(&["add", "max", "--stdin"], "another password");
    for cookie in [&eva, &max] {
        wait_for("the end of a login", || {
            (status(&server, &[cookie]) == 401).then_some(())
        });
    }
    let old = server.try_password("max", &password("max"), &[]);
    assert_eq!(old.status, 401);
    let new = server.try_password("max", "another password", &[]);
    assert_eq!(status(&server, &[&cookie(&new)]), 200);
}

/// Defence: where people have names, the address that is printed opens nothing, nor do cookies that it was traded for.
#[test]
fn a_cookie_of_the_time_before_there_were_users() {
    let server = Server::start();
    let old = server.log_in();
    let folder = server.folder.path().to_owned();
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let users = format!(
        "\"serve\": {{\"users\": \"{}/users.json\"",
        folder.display()
    );
    std::fs::write(
        folder.join("config.json"),
        config.replace("\"serve\": {", &users),
    )
    .unwrap();
    let server = server.restart();
    assert_eq!(server.token, "");
    assert_eq!(status(&server, &[&old]), 401);
    let body = json!({ "token": "" }).to_string();
    assert_eq!(
        server.request("POST", "/api/v1/login", &[], &body).status,
        401
    );
}

/// Defence: secrets are taken from headers and bodies alone, and never told.
#[test]
fn secrets_in_addresses_and_messages() {
    let people = People::new(r#"["eva"]"#, "");
    let token = people.passwd(&["token", "add", "ci", "--user", "eva"], "");
    let server = people.serve();
    let cookie = server.sign_in("eva");
    for query in ["token", "access_token", "session"] {
        let path = format!("/api/v1/configurations?{query}={}", token.trim());
        assert_eq!(server.request("GET", &path, &[], "").status, 401);
    }
    let _ = server.try_password("eva", "another secret", &[]);
    let bearer = format!("Authorization: Bearer {}x", token.trim());
    assert_eq!(status(&server, &[&bearer]), 401);
    let mut told = String::new();
    for file in ["users.json", "tokens.json", "state/logins.json"] {
        told += &std::fs::read_to_string(server.folder.path().join(file)).unwrap();
    }
    server.process.signal(rustix::process::Signal::TERM);
    told += &server.process.wait().1;
    let value = cookie.split_once('=').unwrap().1;
    for secret in [value, token.trim(), &password("eva"), "another secret"] {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
}

/// Defence: a file that others may have written, or read, is refused.
#[test]
fn a_file_of_users_that_others_may_write() {
    let server = People::new(r#"["eva"]"#, "").serve();
    let cookie = server.sign_in("eva");
    let path = server.folder.path().join("users.json");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&path, mode).unwrap();
    // What was read before goes on counting in a server that runs.
    assert_eq!(status(&server, &[&cookie]), 200);
    let mut again = server.command(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    again
        .arg(server.folder.path().join("config.json"))
        .env("RUNTIME_DIRECTORY", server.folder.path().join("again"));
    let (status, stderr) = crate::harness::Process::start(again).wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        stderr.contains("users.json") && stderr.contains("chmod 600"),
        "{stderr}"
    );
}
