//! systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram for each entry.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};

use super::writer::{Entry, Sink};

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// How long an entry may wait for journald.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the names of our fields begin with.
const PREFIX: &str = "NBD_PROXY";
/// Syslog's numbers of "warning" and "informational" (RFC 5424, section 6.2.1).
const WARNING: &str = "4";
const INFORMATIONAL: &str = "6";

/// Whether our standard error goes to the journal. The variable alone tells less: whatever systemd started hands it on
/// (systemd.exec(5), JOURNAL_STREAM).
pub(crate) fn has_standard_error() -> bool {
    let Ok(status) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    let stream = format!("{}:{}", status.st_dev, status.st_ino);
    std::env::var("JOURNAL_STREAM").is_ok_and(|expected| expected == stream)
}

/// A connection to journald.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Journal {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            path: path.into(),
            socket,
        })
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        uninterrupted(|| self.socket.send(datagram)).map(drop)
    }
}

impl Sink for Journal {
    fn place(&self) -> String {
        "journald".into()
    }

    fn keep(&mut self, entry: &Entry) -> io::Result<()> {
        let datagram = datagram(entry);
        match self.send(&datagram) {
            // Another journald has taken the place of the one that we knew.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::NotConnected
                ) =>
            {
                self.socket = Self::open(&self.path)?.socket;
                self.send(&datagram)
            }
            sent => sent,
        }
    }
}

/// What `call` gives, which has a time limit: such a one is interrupted where a process is stopped and goes on
/// (signal(7)).
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The line as MESSAGE, and each member as a field of its own.
fn datagram(entry: &Entry) -> Vec<u8> {
    let priority = if entry.is_warning {
        WARNING
    } else {
        INFORMATIONAL
    };
    let mut datagram = Vec::new();
    append(&mut datagram, "MESSAGE", &entry.line);
    append(&mut datagram, "PRIORITY", priority);
    append(&mut datagram, "SYSLOG_IDENTIFIER", "nbd-proxy");
    append_members(&mut datagram, PREFIX, &entry.members);
    datagram
}

/// `image.name` is `NBD_PROXY_IMAGE_NAME`; what is not known is left out.
fn append_members(datagram: &mut Vec<u8>, prefix: &str, members: &Map<String, Value>) {
    for (name, value) in members {
        let field = format!("{prefix}_{}", name.to_ascii_uppercase());
        match value {
            Value::Null => {}
            Value::Object(inner) => append_members(datagram, &field, inner),
            Value::String(text) => append(datagram, &field, text),
            other => append(datagram, &field, &other.to_string()),
        }
    }
}

/// With its length rather than a line break at its end, so that no text can begin a field of its own.
fn append(datagram: &mut Vec<u8>, field: &str, text: &str) {
    datagram.extend_from_slice(field.as_bytes());
    datagram.push(b'\n');
    datagram.extend_from_slice(&(text.len() as u64).to_le_bytes());
    datagram.extend_from_slice(text.as_bytes());
    datagram.push(b'\n');
}
