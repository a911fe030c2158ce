//! Certificates that the server makes itself.

use super::*;

#[test]
fn the_fingerprint_that_is_shown_is_the_one_that_openssl_sees() {
    let server = self_signed(folder_without_tls());
    let shown = shown_fingerprint(&server);
    assert_eq!(shown, fingerprint_of(server.address));
    let state = server.folder.path().join("state");
    assert_eq!(shown, fingerprint_of_file(&state.join("self-signed.crt")));
    let mode = |name| state.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("self-signed.key"), 0o600);
}

#[test]
fn the_self_signed_certificate_is_kept_across_restarts_and_made_anew_for_other_names() {
    let server = self_signed(folder_without_tls());
    let first = shown_fingerprint(&server);
    let Server {
        folder, process, ..
    } = server;
    drop(process);
    let server = self_signed(folder);
    assert_eq!(shown_fingerprint(&server), first);
    let Server {
        folder, process, ..
    } = server;
    drop(process);
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("\"serve\": {", "\"serve\": {\"hosts\": [\"disk.example\"]");
    std::fs::write(&config, text).unwrap();
    let server = self_signed(folder);
    assert_ne!(shown_fingerprint(&server), first);
    let ca = server.folder.path().join("state/self-signed.crt");
    let ca = ["-CAfile", ca.to_str().unwrap(), "-verify_return_error"];
    for (name, good) in [
        ("disk.example", true),
        ("localhost", true),
        ("other", false),
    ] {
        let ran = s_client(
            server.address,
            &[&ca[..], &["-verify_hostname", name]].concat(),
        );
        assert_eq!(ran.status.success(), good, "{name}: {}", ran.stderr);
    }
}

#[test]
fn a_page_over_tls_gets_a_cookie_that_only_tls_carries() {
    let secured = Secured::start();
    let body = format!(r#"{{"token": "{}"}}"#, secured.server.token);
    let head = "POST /api/v1/login HTTP/1.1\r\nContent-Type: application/json\r\n";
    let response = request(secured.server.address, &secured.ca, None, head, &body).unwrap();
    let cookie = response.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("__Host-") && cookie.contains("; Secure"),
        "{cookie}"
    );
}

#[test]
fn a_configured_certificate_and_one_of_our_own_exclude_each_other() {
    let folder = folder(FILES);
    let mut command = crate::harness::program(folder.path());
    command
        .args([
            "serve",
            "--tls-self-signed",
            "--listen",
            "127.0.0.1:0",
            "--config",
        ])
        .arg(folder.path().join("config.json"));
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("leave one of them out"), "{said}");
}
