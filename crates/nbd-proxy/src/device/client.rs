//! The server's side of one NBD connection: a client of a socket device, or the kernel's driver.

mod connection;
mod output;

use std::{io, time::Duration};

use bytes::BytesMut;
use nbd::{
    BlockSizes, Export,
    server::{Handshake, HandshakeError, HandshakeEvent, HandshakeLimits, TransmissionError},
    wire::TransmissionFlags,
};
use nbd_session::Geometry;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
#[cfg(feature = "serve")]
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use self::connection::LOOK;
pub(crate) use self::connection::serve_transmission;
use super::budget::Inlet;

/// How long a client may take to choose an export.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// The longest READ or WRITE, in bytes; what clients assume where nothing is announced.
const MAX_PAYLOAD: u32 = 32 << 20;
/// Room for one read of the socket.
const READ_ROOM: usize = 64 << 10;

/// How a connection ended that broke no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// By `NBD_CMD_DISC` or `NBD_OPT_ABORT`.
    Disconnect,
    /// By end of file, or because there is no volume any more.
    Closed,
}

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// It broke a rule of the handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It did not choose an export in time.
    #[error("no export was chosen within {} s", HANDSHAKE_TIME.as_secs())]
    Slow,
    /// It doesn't read its replies, or doesn't send what it announced, and others wait for that memory.
    #[error(
        "it read or sent next to nothing for {} s while other clients waited for the memory that it held",
        LOOK.as_secs()
    )]
    Stuck,
    /// It broke a rule of transmission.
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
    /// It couldn't begin TLS: it shows no certificate of the configured authority, for one.
    #[cfg(feature = "serve")]
    #[error("no TLS: {0}")]
    Tls(io::Error),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a volume looks like to NBD clients.
pub(crate) fn export(name: &str, geometry: &Geometry) -> Export {
    // A disk with nothing to flush takes FLUSH all the same, so that nobody has to know.
    let mut flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    for (can, flag) in [
        (
            geometry.read_only,
            TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN,
        ),
        (geometry.can_fua, TransmissionFlags::SEND_FUA),
        (geometry.can_trim, TransmissionFlags::SEND_TRIM),
        (
            geometry.can_write_zeroes,
            TransmissionFlags::SEND_WRITE_ZEROES,
        ),
        (geometry.can_fast_zero, TransmissionFlags::SEND_FAST_ZERO),
        (geometry.can_cache, TransmissionFlags::SEND_CACHE),
        (geometry.rotational, TransmissionFlags::ROTATIONAL),
    ] {
        flags.set(flag, can);
    }
    let description = geometry.description.as_deref().unwrap_or(&geometry.name);
    Export {
        name: name.into(),
        description: (!description.is_empty()).then(|| description.into()),
        size: geometry.size,
        flags,
        block_sizes: Some(BlockSizes {
            minimum: geometry.minimum_block,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
        }),
    }
}

impl ClientError {
    /// Whether the client is simply gone, without a word.
    fn is_leaving(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
    }
}

/// A handshake in which every client gets what it asks for.
pub(crate) fn handshake(exports: Vec<Export>) -> Handshake {
    Handshake::new(exports, HandshakeLimits::default())
}

/// Serves a client that begins with a handshake, or is in the midst of one.
pub(crate) async fn serve<S>(
    stream: S,
    handshake: Handshake,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match serve_from_handshake(stream, handshake, inlet).await {
        Err(error) if error.is_leaving() => Ok(ClientEnd::Closed),
        result => result,
    }
}

async fn serve_from_handshake<S>(
    mut stream: S,
    handshake: Handshake,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let end = match timeout(HANDSHAKE_TIME, shake_hands(&mut stream, handshake)).await {
        Ok(Ok(HandshakeEvent::Transmission { transmission, .. })) => {
            serve_transmission(&mut stream, transmission, inlet).await
        }
        // TLS is never begun where it was not offered.
        Ok(Ok(HandshakeEvent::Aborted | HandshakeEvent::StartTls(_))) => Ok(ClientEnd::Disconnect),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Slow),
    }?;
    // TLS is closed before its connection is (proto.md, "Terminating the transmission phase").
    let _ = timeout(FAREWELL, stream.shutdown()).await;
    Ok(end)
}

/// The part of a handshake that is in the clear, and that of TLS. None where the client left in between.
#[cfg(feature = "serve")]
pub(crate) async fn start_tls<S>(
    mut stream: S,
    config: std::sync::Arc<ServerConfig>,
    exports: Vec<Export>,
) -> Result<Option<(TlsStream<S>, Handshake)>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Handshake::requiring_tls(exports, HandshakeLimits::default());
    let secured = async move {
        let HandshakeEvent::StartTls(begin) = shake_hands(&mut stream, handshake).await? else {
            return Ok(None);
        };
        stream.write_all(&begin.acknowledgement).await?;
        let stream = TlsAcceptor::from(config)
            .accept(stream)
            .await
            .map_err(ClientError::Tls)?;
        Ok(Some((stream, begin.handshake)))
    };
    match secured.await {
        Err(error) if ClientError::is_leaving(&error) => Ok(None),
        result => result,
    }
}

async fn shake_hands<S>(
    stream: &mut S,
    mut handshake: Handshake,
) -> Result<HandshakeEvent, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let mut broken = Ok(());
    loop {
        while let Some(output) = handshake.poll_output() {
            stream.write_all(&output).await?;
        }
        stream.flush().await?;
        broken?;
        if let Some(event) = handshake.poll_event() {
            return Ok(event);
        }
        input.reserve(READ_ROOM);
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // What it has to say about an error goes out before the connection is closed.
        broken = handshake.handle_input(input.split().freeze());
    }
}

#[cfg(test)]
mod tests;
