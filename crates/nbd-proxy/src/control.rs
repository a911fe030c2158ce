//! The control socket: the server's HTTP API for `status`, `eject`, and whoever has its user's rights. There the kernel
//! says who it is, so no token is asked for.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{UnixListener, UnixStream};

use crate::{paths, serve::api::ErrorView};

/// `control.sock` in R.
pub(crate) fn default_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// The server's end. Takes its socket away when dropped.
#[derive(Debug)]
pub(crate) struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Listens at `path`. A socket that a killed server left is replaced; a living server is not.
    pub(crate) async fn bind(path: &Path) -> anyhow::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "another nbd-proxy serve has the control socket {}; end it, or choose another path with --control",
                path.display()
            );
        }
        let listener =
            bind_in_place(path).with_context(|| format!("can't listen on {}", path.display()))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
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

/// Nobody sees the socket before it has its mode and listens.
fn bind_in_place(path: &Path) -> io::Result<UnixListener> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
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
        None => default_path(&paths::runtime_dir()?),
    };
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
