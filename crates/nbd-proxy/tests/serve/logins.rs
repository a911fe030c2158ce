//! Cookies, and how long they are good for.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::{
    harness::{Server, cookie, wait_for},
    page::{ID, Page, link},
};

fn status(server: &Server, cookie: &str) -> u16 {
    server
        .request("GET", "/api/v1/configurations", &[cookie], "")
        .status
}

#[test]
fn each_login_has_its_own_cookie_which_logging_out_ends() {
    let server = Server::start();
    let (one, other) = (server.log_in(), server.log_in());
    assert_ne!(one, other);
    let response = server.request("POST", "/api/v1/logout", &[&one], "");
    assert_eq!(response.status, 204);
    let removal = response.header("set-cookie").unwrap();
    assert!(
        removal.contains("=; ") && removal.contains("Max-Age=0"),
        "{removal}"
    );
    assert_eq!(status(&server, &one), 401);
    assert_eq!(status(&server, &other), 200);
    assert_eq!(
        server.request("POST", "/api/v1/logout", &[&one], "").status,
        204
    );
}

#[test]
fn a_cookie_outlives_a_killed_server_unless_it_was_given_back() {
    let server = Server::start();
    let (kept, given_back) = (server.log_in(), server.log_in());
    let _ = server.request("POST", "/api/v1/logout", &[&given_back], "");
    let token = server.token.clone();
    let server = server.restart();
    assert_ne!(server.token, token);
    assert_eq!(status(&server, &kept), 200);
    assert_eq!(status(&server, &given_back), 401);
}

/// The server is started again, and its logins are older by so many hours.
fn hours_later(server: Server, hours: u64) -> Server {
    let path = server.folder.path().join("state/logins.json");
    let mut saved: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for login in saved["logins"].as_array_mut().unwrap() {
        let times = ["/created", "/seen", "/value/since"];
        for time in times {
            let time = login.pointer_mut(time).unwrap();
            *time = json!(time.as_u64().unwrap() - hours * 3600);
        }
    }
    std::fs::write(&path, saved.to_string()).unwrap();
    server.restart()
}

#[test]
fn a_cookie_gets_a_new_value_after_an_hour() {
    let server = Server::start();
    let old = server.log_in();
    let answer = |server: &Server, cookie: &str| {
        server.request("GET", "/api/v1/configurations", &[cookie], "")
    };
    assert_eq!(answer(&server, &old).header("set-cookie"), None);
    let server = hours_later(server, 1);
    let renewed = cookie(&answer(&server, &old));
    assert_ne!(renewed, old);
    assert_eq!(status(&server, &renewed), 200);
    assert_eq!(answer(&server, &renewed).header("set-cookie"), None);
}

#[test]
fn a_login_that_was_not_used_for_twelve_hours_has_ended() {
    let server = Server::start();
    let cookie = server.log_in();
    let server = hours_later(server, 11);
    assert_eq!(status(&server, &cookie), 200);
    let server = Server::start();
    let cookie = server.log_in();
    let server = hours_later(server, 12);
    assert_eq!(status(&server, &cookie), 401);
}

#[test]
fn the_file_of_the_logins_opens_nothing_and_is_its_owners_alone() {
    let server = Server::start();
    let cookie = server.log_in();
    let path = server.folder.path().join("state/logins.json");
    let (_, value) = cookie.split_once('=').unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains(value));
    for (path, mode) in [(path.as_path(), 0o600), (path.parent().unwrap(), 0o700)] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_file_of_logins_that_others_may_have_written_is_not_believed() {
    let server = Server::start();
    let cookie = server.log_in();
    let path = server.folder.path().join("state/logins.json");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let server = server.restart();
    assert_eq!(status(&server, &cookie), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_who_signs_out_is_held_as_after_any_loss() {
    let server = Server::start();
    let cookie = server.log_in();
    let value = cookie.strip_prefix("Cookie: ").unwrap();
    let mut page = Page::open_with(&server, &link(ID), &[("cookie", value)]).await;
    page.announce("a.iso", &[1; 4096]).await;
    let serving = page.serve(&[1; 4096]);
    server.wait_for_state("attached");
    let _ = server.request("POST", "/api/v1/logout", &[&cookie], "");
    server.wait_for_state("held");
    assert_eq!(serving.ended().await.code, 4401);
}

#[test]
fn two_servers_do_not_write_the_same_logins() {
    let server = Server::start();
    let folder = server.folder.path();
    let mut command = server.command(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command
        .arg(folder.join("config.json"))
        .env("RUNTIME_DIRECTORY", folder.join("other"));
    let other = crate::harness::Process::start(command);
    wait_for("the other server", || {
        folder.join("other/control.sock").exists().then_some(())
    });
    other.signal(rustix::process::Signal::TERM);
    let (status, stderr) = other.wait();
    assert!(status.success());
    assert!(stderr.contains("state-dir"), "{stderr}");
}
