//! The control socket: the server's HTTP API for `status`, `eject`, and whoever has its user's rights. There the kernel
//! says who it is, so no token is asked for.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustix::{fs::FlockOperation, io::Errno};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{UnixListener, UnixStream};

use crate::{paths, serve::api::ErrorView};

/// The longest path of a Unix socket, in bytes (`unix(7)`: 108 with its NUL).
const MAX_PATH: usize = 107;

/// `control.sock` in R.
pub(crate) fn default_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// Refuses what the kernel can't take.
fn check_length(path: &Path) -> anyhow::Result<()> {
    if path.as_os_str().len() > MAX_PATH {
        bail!(
            "the path {} is too long for a socket; name one of at most {MAX_PATH} bytes with --control",
            path.display()
        );
    }
    Ok(())
}

/// The server's end. Takes its socket away when dropped.
#[derive(Debug)]
pub(crate) struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
    /// Of two servers that start at once, one sees the other.
    _lock: Option<File>,
}

impl ControlListener {
    /// Listens at `path`. A socket that a killed server left is replaced; a living server is not.
    pub(crate) async fn bind(path: &Path) -> anyhow::Result<Self> {
        check_length(path)?;
        let failed = || {
            format!(
                "can't listen on {}; choose another path with --control",
                path.display()
            )
        };
        let lock = lock(path).with_context(failed)?;
        if lock.is_none() || UnixStream::connect(path).await.is_ok() {
            bail!(
                "another nbd-proxy serve has the control socket {}; end it, or choose another path with --control",
                path.display()
            );
        }
        Ok(Self {
            listener: bind_in_place(path).with_context(failed)?,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The next connection of our own user or of root; others find a closed one.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if is_trusted(&stream) {
                return Ok(stream);
            }
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the lock beside the socket at `path`; None where another process has it. No configuration's lock has such a
/// name, since none of theirs begins with a dot.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    // Whoever can open a lock can hold it, so nobody else is to.
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.with_file_name(format!(".{}.lock", name.display())))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Nobody sees the socket before it has its mode and listens.
fn bind_in_place(path: &Path) -> io::Result<UnixListener> {
    let part = path.with_file_name(format!(".{}", std::process::id()));
    let listener = UnixListener::bind(&part)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&part, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })?;
    Ok(listener)
}

fn is_trusted(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// An answer of the server.
pub(crate) enum Answer<T> {
    /// It did what was asked; the status tells how.
    Done(StatusCode, T),
    /// It refused.
    Refused(ErrorView),
}

/// Asks the running server one thing. `control` is where its socket is, if not at the usual place.
pub(crate) async fn ask<T: DeserializeOwned>(
    control: Option<PathBuf>,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<Answer<T>> {
    let socket = match control {
        Some(path) => path,
        // Not made: whoever asks leaves nothing behind.
        None => default_path(&paths::locate_runtime_dir()?),
    };
    check_length(&socket)?;
    let stream = UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "no nbd-proxy serve is running: nobody listens at {}; if it listens elsewhere, name that with --control",
            socket.display()
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{} belongs to another user; ask as that user, or as root",
            socket.display()
        ),
        _ => anyhow::Error::new(error).context(format!("can't reach {}", socket.display())),
    })?;
    let (status, body) = exchange(stream, method, path, serde_json::to_vec(body)?)
        .await
        .with_context(|| format!("the server at {} didn't answer", socket.display()))?;
    if status.is_success() {
        return Ok(Answer::Done(status, serde_json::from_slice(&body)?));
    }
    Ok(Answer::Refused(
        serde_json::from_slice(&body).with_context(|| format!("the server answered {status}"))?,
    ))
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}
