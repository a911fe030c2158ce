//! Listening: where we may, and what becomes of a connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{Semaphore, oneshot},
    time::sleep,
};
use tokio_rustls::server::TlsStream;

use super::{Client, Peer, Server, following::Following, http, router, stopped, tls::Tls};
use crate::{config::ServeConfig, control::ControlListener, tcp};

/// Where we listen unless told.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);
/// How many connections for which there is no room are told so at once; more wait in the kernel's queue.
const REFUSALS: usize = 32;
/// How long telling it may take.
const REFUSAL: Duration = Duration::from_secs(5);
/// How long to wait when the kernel gives no connection, because we have too many files open, say.
const RETRY: Duration = Duration::from_millis(200);

/// The addresses to listen on: of the command line, else of the configuration, else the default. Without TLS, our own
/// or a proxy's, none of them may be reached from other machines.
pub(super) fn addresses(
    given: &[SocketAddr],
    config: &ServeConfig,
    tls: bool,
) -> anyhow::Result<Vec<SocketAddr>> {
    let addresses = match (given, &config.listen[..]) {
        ([], []) => vec![DEFAULT],
        ([], configured) => configured.to_vec(),
        (given, _) => given.to_vec(),
    };
    match addresses
        .iter()
        .find(|address| !address.ip().to_canonical().is_loopback())
    {
        Some(address) if !tls && !config.tls_terminated => anyhow::bail!(
            "{address} can be reached from other machines, who could read and change what is sent without TLS; give a \
             certificate with \"tls\" in \"serve\" of the configuration, or let us make one with --tls-self-signed, or \
             listen on 127.0.0.1, or put a proxy that speaks TLS in front and say \"tls-terminated\": true in \"serve\""
        ),
        _ => Ok(addresses),
    }
}

/// Listens on all of them.
pub(super) fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let listener = tcp::listen(*address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => anyhow::anyhow!(
                "can't listen on {address}: something listens there already; end it, or choose another port with --listen"
            ),
            _ => anyhow::Error::new(error).context(format!("can't listen on {address}")),
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Listens on sockets that do already.
pub(super) fn adopt(listeners: Vec<std::net::TcpListener>) -> io::Result<Vec<TcpListener>> {
    let adopt = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listeners.into_iter().map(adopt).collect()
}

/// What a client has shown before it spoke HTTP.
#[derive(Debug, Default)]
pub(super) struct Shown {
    tls: bool,
    certificate: Option<String>,
}

/// Where connections come in.
pub(super) trait Door: Send + Sync + 'static {
    /// A connection that has come.
    type Arrival: Send + 'static;
    /// One on which HTTP is spoken.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next one.
    fn open(&self) -> impl Future<Output = io::Result<(Self::Arrival, Peer)>> + Send;

    /// What there is to do before HTTP. None where nothing is left to do after it.
    fn admit(
        &self,
        arrival: Self::Arrival,
    ) -> impl Future<Output = Option<(Self::Stream, Shown)>> + Send;
}

impl Door for TcpListener {
    type Arrival = TcpStream;
    type Stream = Following;

    async fn open(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        tcp::hasten(&stream);
        Ok((stream, Peer::Network(address)))
    }

    async fn admit(&self, stream: TcpStream) -> Option<(Following, Shown)> {
        Some((Following::new(stream), Shown::default()))
    }
}

/// A listener with TLS.
pub(super) struct Secured {
    pub(super) listener: TcpListener,
    pub(super) tls: Arc<Tls>,
}

impl Door for Secured {
    type Arrival = TcpStream;
    type Stream = TlsStream<Following>;

    async fn open(&self) -> io::Result<(TcpStream, Peer)> {
        self.listener.open().await
    }

    async fn admit(&self, stream: TcpStream) -> Option<(TlsStream<Following>, Shown)> {
        let (stream, certificate) = self.tls.admit(stream).await?;
        Some((
            stream,
            Shown {
                tls: true,
                certificate,
            },
        ))
    }
}

impl Door for ControlListener {
    type Arrival = UnixStream;
    type Stream = UnixStream;

    async fn open(&self) -> io::Result<(UnixStream, Peer)> {
        Ok((self.accept().await?, Peer::Control))
    }

    async fn admit(&self, stream: UnixStream) -> Option<(UnixStream, Shown)> {
        Some((stream, Shown::default()))
    }
}

/// Takes connections until the server stops.
pub(super) async fn take_all(server: Arc<Server>, door: impl Door) {
    let door = Arc::new(door);
    let places = Arc::new(Semaphore::new(server.connections + REFUSALS));
    let mut stopping = server.stopping.clone();
    let next = async || {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        door.open()
            .await
            .map(|(arrival, peer)| (arrival, peer, place))
    };
    loop {
        let opened = tokio::select! {
            opened = next() => opened,
            () = stopped(&mut stopping) => return,
        };
        match opened {
            Ok((arrival, peer, place)) => {
                let (client, life) = seated(&server, Client::new(peer, place));
                let (server, door) = (Arc::clone(&server), Arc::clone(&door));
                let connection = async move {
                    let Some((stream, Shown { tls, certificate })) = door.admit(arrival).await
                    else {
                        return;
                    };
                    let client = Arc::new(Client {
                        tls,
                        certificate,
                        ..client
                    });
                    http::connection(stream, |request| {
                        router::answer(Arc::clone(&server), Arc::clone(&client), request)
                    })
                    .await;
                };
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = life.over() => {}
                    }
                });
            }
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// How long a connection may last that has not become a link.
enum Life {
    /// Until its seat is needed.
    Seated(oneshot::Receiver<()>),
    /// As long as it takes to refuse it.
    Refused,
    /// As long as it likes.
    Free,
}

impl Life {
    async fn over(self) {
        match self {
            Self::Seated(leave) => {
                if leave.await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            Self::Refused => sleep(REFUSAL).await,
            Self::Free => std::future::pending().await,
        }
    }
}

/// Gives a client a seat, where there is one.
fn seated(server: &Server, client: Client) -> (Client, Life) {
    let Peer::Network(address) = client.peer else {
        return (client, Life::Free);
    };
    match server.seats.take(address.ip()) {
        Ok((seat, leave)) => {
            let seat = Some(seat);
            (Client { seat, ..client }, Life::Seated(leave))
        }
        Err(reached) => {
            let too_late = Some(reached);
            (Client { too_late, ..client }, Life::Refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &[&str], tls_terminated: bool) -> ServeConfig {
        let listen = listen
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        ServeConfig {
            listen,
            tls_terminated,
            ..ServeConfig::default()
        }
    }

    #[test]
    fn the_command_line_comes_before_the_configuration_and_that_before_the_default() {
        let given = "127.0.0.1:1".parse().unwrap();
        let configured = config(&["[::1]:2"], false);
        assert_eq!(addresses(&[given], &configured, false).unwrap(), [given]);
        assert_eq!(
            addresses(&[], &configured, false).unwrap(),
            configured.listen
        );
        assert_eq!(
            addresses(&[], &config(&[], false), false).unwrap(),
            [DEFAULT]
        );
    }

    #[test]
    fn listening_beyond_loopback_without_tls_is_refused_with_the_remedy() {
        for address in [
            "0.0.0.0:8000",
            "192.0.2.1:8000",
            "[::]:8000",
            "[2001:db8::1]:8000",
        ] {
            let error = addresses(&[], &config(&["127.0.0.1:8000", address], false), false)
                .unwrap_err()
                .to_string();
            for remedy in [
                "\"tls\"",
                "--tls-self-signed",
                "127.0.0.1",
                "tls-terminated",
            ] {
                assert!(error.contains(address) && error.contains(remedy), "{error}");
            }
            assert!(addresses(&[], &config(&[address], true), false).is_ok());
            assert!(addresses(&[], &config(&[address], false), true).is_ok());
        }
    }
}
