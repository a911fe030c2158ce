//! What is spoken: versions, suites, chains, and what is refused.

use super::*;

#[test]
fn old_versions_of_tls_are_refused_and_the_new_ones_spoken() {
    let secured = Secured::start();
    // Lets openssl itself offer what it would not by default.
    let weak = ["-cipher", "ALL:@SECLEVEL=0"];
    for version in ["-tls1", "-tls1_1"] {
        let ran = s_client(secured.server.address, &[&[version], &weak[..]].concat());
        assert!(!ran.status.success(), "{version}: {}", ran.stdout);
        // By the server, not by openssl's own scruples.
        assert!(ran.stderr.contains("SSL alert number"), "{}", ran.stderr);
    }
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let ran = s_client(secured.server.address, &[&[version], &weak[..]].concat());
        assert!(ran.status.success(), "{version}: {}", ran.stderr);
        assert!(
            ran.stdout.contains(&format!("New, {name}, Cipher is ")),
            "{}",
            ran.stdout
        );
        assert!(ran.stdout.contains("Compression: NONE"), "{}", ran.stdout);
    }
}

#[test]
fn suites_without_forward_secrecy_or_authenticated_encryption_are_refused() {
    let secured = Secured::start();
    let offer = |suites: &str| {
        let suites = format!("{suites}:@SECLEVEL=0");
        s_client(secured.server.address, &["-tls1_2", "-cipher", &suites])
    };
    for suites in [
        "kRSA",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-ECDSA-AES128-SHA256",
        "aNULL",
        "eNULL",
        "PSK",
        "ECDHE-ECDSA-AES256-CCM8",
        "ARIA",
        "CAMELLIA",
    ] {
        let ran = offer(suites);
        assert!(
            ran.stdout.contains("Cipher is (NONE)"),
            "{suites}: {}",
            ran.stdout
        );
    }
    for suites in [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    ] {
        let ran = offer(suites);
        assert!(
            ran.stdout.contains(&format!("Cipher is {suites}")),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn the_whole_chain_is_sent_so_that_who_knows_its_root_alone_trusts_it() {
    let secured = Secured::start();
    let folder = secured.server.folder.path();
    let between = secured.authority.subordinate("between");
    let own = between.server();
    let chain = Pair {
        certificate: own.certificate + &between.pem(),
        ..own
    };
    chain.write(folder);
    secured.wait_for_certificate_in_file();
    let ca = secured.ca.to_str().unwrap();
    let trusts = |ca: &str, name: &str| {
        let arguments = [
            "-CAfile",
            ca,
            "-verify_return_error",
            "-verify_hostname",
            name,
        ];
        s_client(secured.server.address, &arguments)
    };
    let ran = trusts(ca, "localhost");
    assert!(
        ran.stdout.contains("Verify return code: 0 (ok)"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("CN=between") || ran.stdout.contains("CN = between"));
    assert!(!trusts(ca, "other.example").status.success());
    let other = Authority::new("others").write(&folder.join("others.crt"));
    assert!(
        !trusts(other.to_str().unwrap(), "localhost")
            .status
            .success()
    );
}

#[test]
fn renegotiation_and_early_data_are_refused() {
    let secured = Secured::start();
    let address = secured.server.address.to_string();
    let ask = |arguments: &[&str], said: &str| {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["s_client", "-connect", &address])
            .args(arguments);
        openssl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut openssl = openssl.spawn().expect("openssl");
        // It may have gone before it has read all.
        let _ = openssl.stdin.take().unwrap().write_all(said.as_bytes());
        let output = openssl.wait_with_output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    // "R" at the beginning of a line asks for a new handshake within the old (openssl-s_client(1)).
    let said = ask(&["-tls1_2"], "R\nGET / HTTP/1.1\r\n\r\n");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(!said.contains("HTTP/1.1 "), "{said}");
    assert!(
        said.contains("no renegotiation") || said.contains("alert"),
        "{said}"
    );
    // "Q" ends it, once the tickets are there that say how much might come early.
    let said = ask(
        &["-tls1_3", "-ign_eof"],
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert!(said.contains("Max Early Data: 0"), "{said}");
    assert!(!said.contains("Max Early Data: 1"), "{said}");
}

#[test]
fn the_protocol_inside_is_agreed_on() {
    let secured = Secured::start();
    let ran = s_client(secured.server.address, &["-alpn", "h2,http/1.1"]);
    assert!(
        ran.stdout.contains("ALPN protocol: http/1.1"),
        "{}",
        ran.stdout
    );
    let ran = s_client(secured.server.address, &["-alpn", "h2"]);
    assert!(!ran.status.success(), "another protocol is none of ours");
}

#[test]
fn plain_http_to_the_tls_port_is_told_to_use_https() {
    let secured = Secured::start();
    let response = secured.server.request("GET", "/", &[], "");
    assert_eq!(response.status, 400);
    assert!(
        response.json()["error"]
            .as_str()
            .unwrap()
            .contains("https://")
    );
    let token = format!("Authorization: Bearer {}", secured.server.token);
    let response = secured
        .server
        .request("GET", "/api/v1/configurations", &[&token], "");
    assert_eq!(response.status, 400, "whoever it is");
}

#[test]
fn slow_handshakes_block_nobody() {
    let secured = Secured::start();
    let address = secured.server.address;
    // More than there may be at once: some say nothing, some only that they begin.
    let mut slow: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            if number % 2 == 0 {
                stream.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
    // The oldest was given up for the newest, long before its time was over.
    slow[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let read = uninterrupted(|| slow[0].read(&mut [0; 64]));
    assert_eq!(read.unwrap_or(0), 0);
}

#[test]
fn garbage_instead_of_a_handshake_ends_its_connection_alone() {
    let secured = Secured::start();
    let mut open = connect(secured.server.address, &secured.ca, None);
    open.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        .unwrap();
    for garbage in [
        &[22, 3, 1, 0, 4, 255, 255, 255, 255][..],
        &[0; 600],
        &[128, 46, 1, 3, 1],
        b"\n\n\n",
    ] {
        let mut stream = TcpStream::connect(secured.server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    open.write_all(b"Connection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).unwrap();
    assert_eq!(Response::parse(answer).status, 200);
}
