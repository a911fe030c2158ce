//! `nbd-proxy passwd`, and a server that reads what it writes.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{People, password, try_passwd, wait_for};

#[test]
fn users_are_added_listed_and_removed() {
    let people = People::new("[]", "");
    assert!(
        people
            .passwd(&["list"], "")
            .starts_with("eva\tpassword set ")
    );
    people.passwd(&["remove", "eva"], "");
    assert!(people.passwd(&["list"], "").starts_with("max\t"));
}

#[test]
fn tokens_are_shown_once_and_listed_without_themselves() {
    let people = People::new("[]", "");
    let add = ["token", "add", "ci", "--user", "eva", "--expires", "90"];
    let token = people.passwd(&add, "");
    assert!(
        token.starts_with("nbdproxy_") && token.trim().len() == 73,
        "{token}"
    );
    let listed = people.passwd(&["token", "list"], "");
    let fields: Vec<_> = listed.trim_end().split('\t').collect();
    let [name, user, made, expires] = fields[..] else {
        panic!("{listed:?}")
    };
    assert_eq!((name, user), ("ci", "eva"));
    assert!(made.starts_with("made ") && made.ends_with(" s ago"));
    // A second later 90 days are 89 whole ones.
    assert!(["expires in 90 d", "expires in 89 d"].contains(&expires));
    people.passwd(&["remove", "eva"], "");
    assert_eq!(people.passwd(&["token", "list"], ""), "");
}

#[test]
fn the_files_hold_no_secret_and_are_their_owners_alone() {
    let people = People::new("[]", "");
    let token = people.passwd(&["token", "add", "ci", "--user", "eva"], "");
    let server = people.serve();
    for name in ["users.json", "tokens.json"] {
        let path = server.folder.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, digits) = token.trim().split_at("nbdproxy_".len());
        for secret in [password("eva").as_str(), digits, &digits[60..]] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let text = std::fs::read_to_string(server.folder.path().join("users.json")).unwrap();
    assert!(text.contains("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
}

#[test]
fn what_can_not_be_is_refused_with_the_reason() {
    let server = People::new("[]", "").serve();
    let folder = server.folder.path();
    for (arguments, stdin, part) in [
        (&["add", "ina", "--stdin"][..], "short", "at least 10"),
        (&["add", "ina"], "long enough a password", "--stdin"),
        (&["add", "local", "--stdin"], "long enough", "\"local\""),
        (&["add", "eva ", "--stdin"], "long enough", "no space"),
        (&["remove", "ina"], "", "no user \"ina\""),
        (&["token", "add", "x", "--user", "*"], "", "\"*\""),
        (&["token", "revoke", "x"], "", "no token \"x\""),
        (&["list", "--users", "/proc/self"], "", "not a file"),
    ] {
        let ran = try_passwd(folder, arguments, stdin);
        assert_eq!(ran.status.code(), Some(1), "{arguments:?}");
        assert!(ran.stderr.contains(part), "{arguments:?}: {}", ran.stderr);
    }
    let ran = try_passwd(folder, &["add"], "");
    assert_eq!(ran.status.code(), Some(2));
}

#[test]
fn a_configuration_that_names_no_file_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"configurations": {"0": {"device": "auto"}}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let ran = try_passwd(folder.path(), &["list"], "");
    assert!(ran.stderr.contains("--users FILE"), "{}", ran.stderr);
}

#[test]
fn a_user_who_is_added_can_sign_in_without_a_restart() {
    let server = People::new(r#"["*"]"#, "").serve();
    server.passwd(&["add", "ina", "--stdin"], &password("ina"));
    wait_for("ina", || {
        let status = server.try_password("ina", &password("ina"), &[]).status;
        (status == 204).then_some(())
    });
}

#[test]
fn a_broken_file_changes_nothing_and_is_complained_of() {
    let server = People::new(r#"["*"]"#, "").serve();
    let path = server.folder.path().join("users.json");
    std::fs::write(&path, "{").unwrap();
    let complaint = |part: &str| {
        wait_for(part, || server.process.said().contains(part).then_some(()));
    };
    complaint("users.json said before goes on counting");
    let _ = server.sign_in("eva");
    std::fs::remove_file(&path).unwrap();
    complaint("users.json is gone");
    let _ = server.sign_in("eva");
}

#[test]
fn who_is_named_in_allow_and_not_known_is_complained_of() {
    let server = People::new(r#"["eva", "evva"]"#, "").serve();
    server.process.signal(rustix::process::Signal::TERM);
    let (_, stderr) = server.process.wait();
    assert!(
        stderr.contains("\"evva\"") && !stderr.contains("\"eva\""),
        "{stderr}"
    );
    assert!(stderr.contains("\"lab 2\" has no \"allow\""), "{stderr}");
}
