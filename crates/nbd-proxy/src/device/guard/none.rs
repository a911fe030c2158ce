//! A build without TLS.

use nbd::{Export, server::Handshake};
use tokio::net::TcpStream;

use super::{DeviceError, client::ClientError};
use crate::config::TlsFiles;

/// There is none.
#[derive(Debug, Clone)]
pub(super) enum Guard {}

impl Guard {
    pub(super) async fn new(_: &TlsFiles) -> Result<Self, DeviceError> {
        Err(DeviceError::Unavailable {
            device: "NBD over TLS".into(),
            cause: "this nbd-proxy was built without it".into(),
            remedy: "build it with the feature \"serve\", or use unix:PATH".into(),
        })
    }

    pub(super) async fn admit(
        &self,
        _: TcpStream,
        _: Vec<Export>,
    ) -> Result<Option<(TcpStream, Handshake)>, ClientError> {
        match *self {}
    }
}
