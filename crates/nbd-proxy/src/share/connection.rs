//! The connection to a distant nbd-proxy: TCP, TLS where asked for, HTTP, and the WebSocket.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
    http::{request, response},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tokio_websockets::{ClientBuilder, Config, Error, Limits, upgrade};

use super::address::Address;
use crate::{
    link::websocket::Socket,
    serve::{
        api::{Configurations, ErrorView},
        path,
    },
    tcp,
};

/// How long it may take until the WebSocket is open, at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a logout may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// The longest answer of the API that we read, bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// The longest message that we take, bytes: a server sends requests and short texts.
const MESSAGE_LIMIT: usize = 256 << 10;
/// Bytes of messages that are gathered for one system call, as long as there are more to send.
const GATHERED: usize = 512 << 10;

/// Any stream of bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The WebSocket of a `v=1` link.
pub(super) type Connection = Socket<Box<dyn Stream>>;

/// Opens a link for a session within `patience`. An address that names no configuration names one from then on.
pub(super) async fn open(
    address: &mut Address,
    session: &str,
    takeover: bool,
    patience: Duration,
) -> anyhow::Result<Connection> {
    let authority = address.authority.clone();
    timeout(patience, async {
        log_in(address).await?;
        let configuration = match &address.configuration {
            Some(name) => name.clone(),
            None => default_configuration(address).await?,
        };
        let link = address.link(&configuration, session, takeover);
        address.configuration = Some(configuration);
        open_link(address, &link).await
    })
    .await
    .with_context(|| format!("{authority} didn't answer within {} s", patience.as_secs()))?
}

async fn open_link(address: &Address, link: &str) -> anyhow::Result<Connection> {
    let mut builder = ClientBuilder::new()
        .uri(link)
        .with_context(|| format!("{link:?} is not an address"))?
        .config(Config::default().flush_threshold(GATHERED))
        .limits(Limits::default().max_payload_len(Some(MESSAGE_LIMIT)));
    if let Some((name, value)) = credentials(address)? {
        builder = builder.add_header(name, value)?;
    }
    match builder.connect_on(connect(address).await?).await {
        Ok((stream, _)) => Ok(Socket::new(stream)),
        Err(Error::Upgrade(upgrade::Error::DidNotSwitchProtocols(403))) => bail!(
            "{} refuses to be called by this name; add it to \"hosts\" in \"serve\" of its configuration",
            address.authority
        ),
        Err(error) => Err(error)
            .with_context(|| format!("there is no nbd-proxy serve at {}", address.authority)),
    }
}

/// The name of the default configuration, percent-encoded.
async fn default_configuration(address: &Address) -> anyhow::Result<String> {
    let (status, body) = get(address, "/api/v1/configurations").await?;
    if status != StatusCode::OK {
        match serde_json::from_slice::<ErrorView>(&body) {
            Ok(refusal) => bail!("{}: {}", address.authority, refusal.error),
            Err(_) => bail!(
                "there is no nbd-proxy serve at {}: it answers {status}",
                address.authority
            ),
        }
    }
    let all: Configurations = serde_json::from_slice(&body).with_context(|| {
        format!(
            "there is no nbd-proxy serve at {} that we understand",
            address.authority
        )
    })?;
    let names = || {
        all.configurations
            .iter()
            .map(|one| format!("/nbd/{}", path::encode(&one.name)))
            .collect::<Vec<_>>()
    };
    match all.configurations.iter().find(|one| one.default) {
        Some(one) => Ok(path::encode(&one.name)),
        None => bail!(
            "{} has no default configuration; append one of {} to the address",
            address.authority,
            names().join(", ")
        ),
    }
}

/// Trades the token for a cookie as a page does, once: the token of a printed address ends with the server's process.
/// Where that can't be, the token itself is sent.
async fn log_in(address: &mut Address) -> anyhow::Result<()> {
    let Some(token) = address.token.as_ref().filter(|_| !address.has_logged_in) else {
        return Ok(());
    };
    let body = serde_json::to_vec(&serde_json::json!({ "token": token }))?;
    let request = Request::post(format!("{}/api/v1/login", address.prefix))
        .header(header::CONTENT_TYPE, "application/json");
    let (response, _) = ask(address, request, body.into()).await?;
    let cookie = response
        .headers
        .get(header::SET_COOKIE)
        .filter(|_| response.status.is_success());
    let pair = cookie
        .and_then(|cookie| cookie.to_str().ok())
        .and_then(|cookie| cookie.split(';').next());
    address.cookie = pair.map(str::to_owned);
    address.has_logged_in = true;
    Ok(())
}

/// Ends our login, which would be good for hours. A server that is gone, or slow, ends it by itself in time.
pub(super) async fn log_out(address: &Address) {
    let Ok(Some((name, value))) = credentials(address) else {
        return;
    };
    if address.cookie.is_some() {
        let request = Request::post(format!("{}/api/v1/logout", address.prefix))
            .header(header::CONTENT_TYPE, "application/json")
            .header(name, value);
        let _ = timeout(FAREWELL, ask(address, request, Bytes::new())).await;
    }
}

async fn get(address: &Address, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let mut request = Request::get(format!("{}{path}", address.prefix));
    if let Some((name, value)) = credentials(address)? {
        request = request.header(name, value);
    }
    let (response, body) = ask(address, request, Bytes::new()).await?;
    Ok((response.status, body))
}

/// Sends one request on a connection of its own.
async fn ask(
    address: &Address,
    request: request::Builder,
    body: Bytes,
) -> anyhow::Result<(response::Parts, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connect(address).await?)).await?;
    let connection = tokio::spawn(connection);
    let request = request
        .header(header::HOST, &address.authority)
        .body(Full::new(body))?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("{} does not speak HTTP", address.authority))?;
    let (response, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await;
    connection.abort();
    let body = body.map_err(|error| {
        anyhow::anyhow!("the answer of {} broke off: {error}", address.authority)
    })?;
    Ok((response, body.to_bytes()))
}

/// The header that says who we are.
fn credentials(address: &Address) -> anyhow::Result<Option<(HeaderName, HeaderValue)>> {
    let (name, value) = match (&address.cookie, &address.token) {
        (Some(cookie), _) => (header::COOKIE, cookie.clone()),
        (None, Some(token)) => (header::AUTHORIZATION, format!("Bearer {token}")),
        (None, None) => return Ok(None),
    };
    let mut value = HeaderValue::try_from(value).context("this token can't be sent")?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

async fn connect(address: &Address) -> anyhow::Result<Box<dyn Stream>> {
    let stream = tcp::connect(&address.host, address.port)
        .await
        .with_context(|| {
            let Address { host, port, .. } = address;
            format!("can't connect to {host} port {port}, where nbd-proxy serve should listen")
        })?;
    if !address.tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(address.host.clone())
        .context("the address names no host that a certificate could")?;
    let (config, verifier) = address.trust.config()?;
    match TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
    {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => {
            let context = format!("no secure connection to {}", address.authority);
            Err(match verifier.refusal() {
                Some(refusal) => anyhow::Error::msg(refusal).context(context),
                None => anyhow::Error::new(error).context(context),
            })
        }
    }
}
