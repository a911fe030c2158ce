//! Whatever is sent to the web server, it answers with its own headers or not at all, and nobody without the token sees
//! a session or begins one.
#![no_main]

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::LazyLock,
    thread,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;

/// Stands for the token in a request.
const TOKEN: &[u8] = b"TOKEN";
/// The close frame of who is not allowed, up to its code: 4401.
const NOT_ALLOWED: [u8; 2] = 4401_u16.to_be_bytes();
/// Longer than the server may take for anything that is asked here.
const PATIENCE: Duration = Duration::from_secs(15);

struct Server {
    address: SocketAddr,
    token: String,
}

static SERVER: LazyLock<Server> = LazyLock::new(start);

fuzz_target!(|request: &[u8]| {
    let known = request.windows(TOKEN.len()).any(|bytes| bytes == TOKEN);
    let answer = ask(&with_token(request, SERVER.token.as_bytes()));
    if answer.is_empty() {
        return;
    }
    let (head, body) = split(&answer);
    assert!(head.starts_with("HTTP/1."), "{head}");
    // What is no request at all is answered by the HTTP library.
    if !matches!(&head[9..12], "400" | "414" | "431" | "505") {
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    if !known {
        assert!(!head.contains("set-cookie"), "{head}");
        assert!(!contains(body, b"\"session\""), "a stranger sees a session");
        let opened = head[9..].starts_with("101");
        assert!(
            !opened || contains(body, &NOT_ALLOWED),
            "a stranger has a link"
        );
    }
});

/// The real program, with everything but a machine that needs a disk.
fn start() -> Server {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let device = folder.join("0.sock");
    let config = format!(
        r#"{{"configurations":{{"0":{{"device":"unix:{}","hold":0}}}},"serve":{{"hosts":["disk.example"]}}}}"#,
        device.display()
    );
    let file = folder.join("config.json");
    fs::write(&file, config).expect("a configuration");
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::stdio::dup2_stdout(&writer).expect("standard output");
    let arguments = [
        "nbd-proxy".into(),
        "serve".into(),
        "--listen=127.0.0.1:0".into(),
        "--config".into(),
        file.into(),
        "--control".into(),
        folder.join("control.sock").into(),
    ];
    thread::spawn(move || nbd_proxy::fuzzing::program(arguments).expect("a server"));
    let mut line = String::new();
    BufReader::new(fs::File::from(reader))
        .read_line(&mut line)
        .expect("an address");
    let (address, token) = line
        .trim_end()
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once("/#token="))
        .expect("an address with a token");
    Server {
        address: address.parse().expect("an address"),
        token: token.to_owned(),
    }
}

fn with_token(request: &[u8], token: &[u8]) -> Vec<u8> {
    let mut sent = Vec::with_capacity(request.len());
    let mut rest = request;
    while let Some(&first) = rest.first() {
        match rest.strip_prefix(TOKEN) {
            Some(tail) => {
                sent.extend(token);
                rest = tail;
            }
            None => {
                sent.push(first);
                rest = &rest[1..];
            }
        }
    }
    sent
}

/// Sends everything, then nothing more, and takes what comes.
fn ask(request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(SERVER.address).expect("a server that lives");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answer = Vec::new();
    let sent = stream
        .write_all(request)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let read = sent.and_then(|()| stream.read_to_end(&mut answer));
    let late = matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock);
    assert!(
        !late,
        "the connection is kept although nothing more can come"
    );
    answer
}

/// The head of the first answer, in lower case but for its first line, and what follows.
fn split(answer: &[u8]) -> (String, &[u8]) {
    let border = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = answer.split_at(border.unwrap_or(answer.len()));
    (String::from_utf8_lossy(head).into_owned(), body)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
