//! TLS at the door: who may come in, and what is said to those who come without it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{following::Following, http};
use crate::{
    config::ServeConfig,
    report,
    tls::{self, Clients, Handshakes, SelfSigned, Server, Source},
};

/// How many handshakes there may be at once at all listeners.
const HANDSHAKES: usize = 256;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is spoken inside.
const PROTOCOL: &[u8] = b"http/1.1";
/// What a TLS connection begins with: a record of type handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The server's TLS.
#[derive(Debug)]
pub(super) struct Tls {
    server: Server,
    handshakes: Arc<Handshakes>,
}

impl Tls {
    /// As configured, or with a certificate of our own in the state directory, made for what we listen on; None where
    /// neither is wanted.
    pub(super) async fn start(
        config: &ServeConfig,
        self_signed: bool,
        listening: &[SocketAddr],
        state_dir: impl FnOnce() -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Option<Arc<Self>>> {
        let (source, clients) = match &config.tls {
            Some(_) if self_signed => anyhow::bail!(
                "--tls-self-signed is for a server without a certificate, and \"serve\" of the configuration has \"tls\"; \
                 leave one of them out"
            ),
            Some(files) => {
                let source = Source::Files {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                };
                let clients = files.client_ca.clone();
                (source, clients.map_or(Clients::Anonymous, Clients::MayShow))
            }
            None if self_signed => {
                let addresses = listening.iter().map(SocketAddr::ip);
                let made = SelfSigned::new(&state_dir()?, addresses, &config.hosts);
                (Source::SelfSigned(made), Clients::Anonymous)
            }
            None => return Ok(None),
        };
        let server = Server::start(source, clients, Some(PROTOCOL)).await?;
        if self_signed {
            report::information(format_args!(
                "the certificate is our own; its SHA-256 fingerprint is {}",
                server.fingerprint()
            ));
        }
        Ok(Some(Arc::new(Self {
            server,
            handshakes: Handshakes::new(HANDSHAKES, PATIENCE),
        })))
    }

    /// The connection inside, and the name in the client's certificate where it showed one. None where there is
    /// nothing to go on with.
    pub(super) async fn admit(
        &self,
        stream: TcpStream,
    ) -> Option<(TlsStream<Following>, Option<String>)> {
        let config = self.server.config();
        self.handshakes
            .run(async {
                let mut first = [0];
                if stream.peek(&mut first).await.ok()? == 1 && first != [HANDSHAKE_RECORD] {
                    redirect(stream).await;
                    return None;
                }
                let stream = TlsAcceptor::from(config)
                    .accept(Following::new(stream))
                    .await
                    .ok()?;
                let certificates = stream.get_ref().1.peer_certificates();
                let name = certificates
                    .and_then(<[_]>::first)
                    .and_then(|certificate| tls::common_name(certificate));
                Some((stream, name))
            })
            .await?
    }
}

/// Says to one who speaks plain HTTP what is spoken here.
async fn redirect(stream: TcpStream) {
    http::connection(stream, |_| async {
        let mut response = http::error(
            StatusCode::BAD_REQUEST,
            "TLS is spoken here: begin the address with https:// or wss://",
        );
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        http::secure(headers, None);
        response
    })
    .await;
}
