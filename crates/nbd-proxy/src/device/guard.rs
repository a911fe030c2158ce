//! NBD's own TLS (proto.md, "TLS support") at the door of a device on TCP.

use std::{sync::Arc, time::Duration};

use nbd::{Export, server::Handshake};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{
    DeviceError,
    client::{self, ClientError},
};
use crate::{
    config::TlsFiles,
    tls::{Clients, Handshakes, Server, Source},
};

/// How many strangers there are at once at most.
const STRANGERS: usize = 64;
/// How long one may take to show who it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets in who speaks TLS, and shows a certificate where one is asked for.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    tls: Arc<Server>,
    handshakes: Arc<Handshakes>,
}

impl Guard {
    /// Whether the files will do. Blocks.
    pub(super) fn check(files: &TlsFiles) -> Result<(), DeviceError> {
        let (source, clients) = parts(files);
        Server::check(source, clients).map_err(|error| DeviceError::Refused(error.to_string()))
    }

    pub(super) async fn new(files: &TlsFiles) -> Result<Self, DeviceError> {
        let (source, clients) = parts(files);
        let tls = Server::start(source, clients, None)
            .await
            .map_err(|error| DeviceError::Refused(error.to_string()))?;
        Ok(Self {
            tls: Arc::new(tls),
            handshakes: Handshakes::new(STRANGERS, PATIENCE),
        })
    }

    /// None for one who left, or took too long.
    pub(super) async fn admit(
        &self,
        stream: TcpStream,
        exports: Vec<Export>,
    ) -> Result<Option<(TlsStream<TcpStream>, Handshake)>, ClientError> {
        let handshake = client::start_tls(stream, self.tls.config(), exports);
        self.handshakes.run(handshake).await.unwrap_or(Ok(None))
    }
}

fn parts(files: &TlsFiles) -> (Source, Clients) {
    let source = Source::Files {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
    };
    let clients = match &files.client_ca {
        Some(path) => Clients::MustShow(path.clone()),
        None => Clients::Anonymous,
    };
    (source, clients)
}
