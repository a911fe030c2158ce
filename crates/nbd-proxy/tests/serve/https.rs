//! TLS of the server itself, judged by openssl where that can.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    certificates::{Authority, Pair, connect, request},
    disk::Disk,
    harness::{PATIENCE, Process, Ran, Response, Server, wait_for},
};

const FILES: &str = r#""certificate": "FOLDER/server.crt", "key": "FOLDER/server.key""#;

/// A server with a certificate of an authority whose own is `ca.crt` in its folder.
struct Secured {
    server: Server,
    ca: PathBuf,
    authority: Authority,
}

impl Secured {
    /// With further members of `tls`, after these files were made.
    fn with(tls: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = folder(&format!("{FILES} {tls}"));
        let authority = Authority::new("servers");
        let ca = authority.write(&folder.path().join("ca.crt"));
        authority.server().write(folder.path());
        prepare(folder.path());
        Self {
            server: Server::again_as(folder, LOOPBACK, "https", &[]),
            ca,
            authority,
        }
    }

    fn start() -> Self {
        Self::with("", |_| {})
    }

    fn get(&self, path: &str, certificate: Option<&Pair>) -> std::io::Result<Response> {
        let head = format!("GET {path} HTTP/1.1\r\n");
        request(self.server.address, &self.ca, certificate, &head, "")
    }

    fn get_with_token(&self, path: &str, certificate: Option<&Pair>) -> std::io::Result<Response> {
        let token = &self.server.token;
        let head = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n");
        request(self.server.address, &self.ca, certificate, &head, "")
    }

    /// Waits until connections are shown the certificate that is in the file now.
    fn wait_for_certificate_in_file(&self) {
        let expected = fingerprint_of_file(&self.server.folder.path().join("server.crt"));
        wait_for("the new certificate", || {
            (fingerprint_of(self.server.address) == expected).then_some(())
        });
    }
}

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn folder(tls: &str) -> TempDir {
    let serve = format!(r#""tls": {{{tls}}}"#);
    Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", &serve)
}

fn self_signed(folder: TempDir) -> Server {
    Server::again_as(folder, LOOPBACK, "https", &["--tls-self-signed"])
}

/// Runs openssl to its end. Its standard input is closed.
fn openssl(arguments: &[&str]) -> Ran {
    let output = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("openssl");
    Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn s_client(address: SocketAddr, arguments: &[&str]) -> Ran {
    let address = address.to_string();
    openssl(&[&["s_client", "-connect", &address], arguments].concat())
}

fn fingerprint_of_file(path: &Path) -> String {
    let path = path.to_str().unwrap();
    let ran = openssl(&["x509", "-in", path, "-noout", "-fingerprint", "-sha256"]);
    let (_, fingerprint) = ran.stdout.trim().split_once('=').expect(&ran.stderr);
    fingerprint.to_owned()
}

/// Of what is shown to a new connection, as openssl sees it.
fn fingerprint_of(address: SocketAddr) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shown.crt");
    let shown = s_client(address, &["-showcerts"]).stdout;
    std::fs::write(&path, shown).unwrap();
    fingerprint_of_file(&path)
}

/// As the server shows it when it starts.
fn shown_fingerprint(server: &Server) -> String {
    wait_for("a fingerprint", || {
        let said = server.process.said();
        let (_, rest) = said.split_once("SHA-256 fingerprint is ")?;
        Some(rest.lines().next()?.to_owned())
    })
}

fn session(server: &Server) -> Value {
    let ran = server.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    status["configurations"][0]["session"].clone()
}

/// Shares `size` bytes, and waits until they are the device.
fn share(server: &Server, size: usize, arguments: &[&str]) -> Process {
    let image = server.image("a.iso", &vec![7; size]);
    let mut command = server.command(&["share", image.to_str().unwrap(), &url(server)]);
    command.args(arguments);
    let sharing = Process::start(command);
    wait_for("the session", || {
        (session(server)["state"] == "attached").then_some(())
    });
    sharing
}

fn url(server: &Server) -> String {
    format!("https://{}/#token={}", server.address, server.token)
}

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

fn folder_without_tls() -> TempDir {
    Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "")
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
fn a_certificate_is_replaced_without_dropping_the_session() {
    let secured = Secured::start();
    let server = &secured.server;
    let before = fingerprint_of(server.address);
    let ca = secured.ca.to_str().unwrap();
    let mut sharing = share(server, 3_000_000, &["--ca", ca]);
    secured.authority.server().write(server.folder.path());
    secured.wait_for_certificate_in_file();
    assert_ne!(fingerprint_of(server.address), before);
    assert!(Disk::connect(&server.device()).read_all()[..3_000_000] == [7; 3_000_000]);
    assert!(sharing.is_running());
    sharing.signal(rustix::process::Signal::TERM);
    let (status, said) = sharing.wait();
    assert!(status.success() && !said.contains("lost"), "{said}");
}

#[test]
fn a_certificate_that_takes_its_time_to_be_read_keeps_nobody_waiting() {
    let secured = Secured::start();
    let address = secured.server.address;
    let folder = secured.server.folder.path();
    let before = fingerprint_of(address);
    let certificate = folder.join("server.crt");
    let (next, at_once) = (secured.authority.server(), rustix::fs::OFlags::NONBLOCK);
    // Whoever reads a pipe waits for who writes to it.
    std::fs::remove_file(&certificate).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &certificate,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let mut pipe = wait_for("the server to read", || {
        let flags = rustix::fs::OFlags::WRONLY | at_once;
        let opened = rustix::fs::open(&certificate, flags, rustix::fs::Mode::empty());
        opened.ok().map(std::fs::File::from)
    });
    for _ in 0..3 {
        assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
    }
    assert_eq!(fingerprint_of(address), before);
    std::fs::write(folder.join("server.key"), &next.key).unwrap();
    std::io::Write::write_all(&mut pipe, next.certificate.as_bytes()).unwrap();
    drop(pipe);
    wait_for("the new certificate", || {
        (fingerprint_of(address) != before).then_some(())
    });
}

#[test]
fn a_broken_new_certificate_leaves_the_old_one_and_says_so() {
    let secured = Secured::start();
    let server = &secured.server;
    let before = fingerprint_of(server.address);
    let certificate = server.folder.path().join("server.crt");
    let good = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, "nothing").unwrap();
    wait_for("a complaint", || {
        assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
        let said = server.process.said();
        let complaint = said
            .lines()
            .find(|line| line.contains("the old one stays"))?;
        assert!(
            complaint.contains("server.crt has no certificate"),
            "{complaint}"
        );
        Some(())
    });
    assert_eq!(fingerprint_of(server.address), before);
    std::fs::write(&certificate, good).unwrap();
    secured.authority.server().write(server.folder.path());
    secured.wait_for_certificate_in_file();
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
fn a_client_certificate_tells_who_it_is_and_nobody_needs_one_to_be_answered() {
    let clients = Authority::new("clients");
    let secured = Secured::with(r#", "client-ca": "FOLDER/clients.crt""#, |folder| {
        clients.write(&folder.join("clients.crt"));
    });
    let alice = clients.client("alice");
    let path = "/metrics";
    assert_eq!(secured.get(path, Some(&alice)).unwrap().status, 200);
    assert_eq!(secured.get(path, None).unwrap().status, 401);
    assert!(secured.server.token.is_empty(), "people have a way to come");
    let local = clients.client("local");
    assert_eq!(
        secured.get(path, Some(&local)).unwrap().status,
        401,
        "who sits at the machine"
    );
}

#[test]
fn a_client_certificate_of_a_foreign_authority_or_past_its_time_is_refused() {
    let clients = Authority::new("clients");
    let secured = Secured::with(r#", "client-ca": "FOLDER/clients.crt""#, |folder| {
        clients.write(&folder.join("clients.crt"));
    });
    // By another authority of the same name, and by that of the server's own certificate.
    for foreign in [Authority::new("clients"), Authority::new("servers")] {
        let alice = foreign.client("alice");
        assert!(secured.get_with_token("/metrics", Some(&alice)).is_err());
    }
    let late = clients.expired_client("alice");
    assert!(secured.get_with_token("/metrics", Some(&late)).is_err());
    assert!(
        secured
            .get("/metrics", Some(&clients.client("alice")))
            .is_ok()
    );
}

#[test]
fn a_client_certificate_counts_only_where_an_authority_is_named() {
    let secured = Secured::start();
    let alice = secured.authority.client("alice");
    assert_eq!(secured.get("/metrics", Some(&alice)).unwrap().status, 401);
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
    assert_eq!(slow[0].read(&mut [0; 64]).unwrap_or(0), 0);
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

/// Starts a server that can't, with these files.
fn fails(prepare: impl FnOnce(&Path)) -> String {
    let folder = folder(FILES);
    Authority::new("servers").server().write(folder.path());
    prepare(folder.path());
    let mut command = crate::harness::program(folder.path());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(folder.path().join("config.json"));
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_is_wrong_with_a_certificate_or_its_key_is_told_in_one_line_with_the_remedy() {
    let write = |name: &'static str, text: &'static str| {
        move |folder: &Path| std::fs::write(folder.join(name), text).unwrap()
    };
    let said = fails(|folder| std::fs::remove_file(folder.join("server.key")).unwrap());
    assert!(
        said.contains("can't read") && said.contains("server.key"),
        "{said}"
    );
    let said = fails(write("server.crt", "# empty\n"));
    assert!(
        said.contains("has no certificate") && said.contains("BEGIN CERTIFICATE"),
        "{said}"
    );
    let said = fails(write("server.crt", "-----BEGIN CERTIFICATE-----\nYQ==\n"));
    assert!(said.contains("not PEM"), "{said}");
    let bad = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
    let said = fails(write("server.crt", bad));
    assert!(said.contains("server.crt"), "{said}");
    let said = fails(write(
        "server.key",
        "-----BEGIN NOTHING-----\n-----END NOTHING-----\n",
    ));
    assert!(said.contains("has no private key"), "{said}");
    let said = fails(|folder| {
        let other = Authority::new("others").server();
        let path = folder.join("server.key");
        std::fs::write(path, other.key).unwrap();
    });
    assert!(
        said.contains("does not belong to the first certificate"),
        "{said}"
    );
}

#[test]
fn an_encrypted_key_is_told_from_a_broken_one() {
    let said = fails(|folder| {
        let key = folder.join("server.key");
        let clear = folder.join("clear.key");
        std::fs::rename(&key, &clear).unwrap();
        let paths = [
            "-in",
            clear.to_str().unwrap(),
            "-out",
            key.to_str().unwrap(),
        ];
        let ran = openssl(&[&["pkcs8", "-topk8", "-passout", "pass:x"], &paths[..]].concat());
        assert!(ran.status.success(), "{}", ran.stderr);
    });
    assert!(
        said.contains("is encrypted") && said.contains("openssl pkey"),
        "{said}"
    );
}

#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let secured = Secured::with("", |folder| {
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.join("server.key"), readable).unwrap();
    });
    wait_for("a warning", || {
        secured
            .server
            .process
            .said()
            .contains("chmod 600")
            .then_some(())
    });
    assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
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

#[test]
fn share_takes_a_server_by_its_fingerprint_and_no_other() {
    let server = self_signed(folder_without_tls());
    let fingerprint = shown_fingerprint(&server);
    let sharing = share(&server, 3_000_000, &["--fingerprint", &fingerprint]);
    assert!(Disk::connect(&server.device()).read_all()[..3_000_000] == [7; 3_000_000]);
    sharing.signal(rustix::process::Signal::TERM);
    assert!(sharing.wait().0.success());
    let other = fingerprint.replace(':', "").to_lowercase();
    let other = format!("{}{}", &other[1..], &other[..1]);
    let image = server.folder.path().join("a.iso");
    let arguments = [
        "share",
        image.to_str().unwrap(),
        &url(&server),
        "--fingerprint",
        &other,
    ];
    // Where it took the server, it would share for ever.
    let (status, said) = Process::start(server.command(&arguments)).wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        said.contains(&fingerprint) && said.contains("in its place"),
        "{said}"
    );
}

#[test]
fn share_tells_how_to_trust_a_server_that_it_does_not_know() {
    let server = self_signed(folder_without_tls());
    let fingerprint = shown_fingerprint(&server);
    let image = server.image("a.iso", &[7; 512]);
    let certificate = server.folder.path().join("state/self-signed.crt");
    let stranger = Authority::new("strangers").write(&server.folder.path().join("other.crt"));
    let mut command = server.command(&["share", image.to_str().unwrap(), &url(&server)]);
    command.env("SSL_CERT_FILE", &stranger);
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    for remedy in ["--ca", &format!("--fingerprint {fingerprint}")] {
        assert!(said.contains(remedy), "{said}");
    }
    let mut sharing = share(&server, 512, &["--ca", certificate.to_str().unwrap()]);
    assert!(sharing.is_running());
}

#[test]
fn share_checks_no_certificate_where_there_is_no_tls() {
    let server = Server::start();
    let image = server.image("a.iso", &[7; 512]);
    let fingerprint = "00".repeat(32);
    let url = server.url();
    let ran = server.run(&[
        "share",
        image.to_str().unwrap(),
        &url,
        "--fingerprint",
        &fingerprint,
    ]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(ran.stderr.contains("https://"), "{}", ran.stderr);
}
