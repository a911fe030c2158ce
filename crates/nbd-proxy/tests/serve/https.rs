//! TLS of the server itself, judged by openssl where that can.

mod clients;
mod files;
mod protocol;
mod self_signed;
mod share;

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
    harness::{PATIENCE, Process, Ran, Response, Server, uninterrupted, wait_for},
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

fn folder_without_tls() -> TempDir {
    Server::folder("unix:FOLDER/0.sock", "\"hold\": 60", "")
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
