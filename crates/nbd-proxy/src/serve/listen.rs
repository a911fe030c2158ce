//! Listening: where we may, and what becomes of a connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::sleep,
};

use super::{Peer, Server, http, router};
use crate::{config::ServeConfig, control::ControlListener};

/// Where we listen unless told.
const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);
/// How many connections there may be at once at all listeners of a kind; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// How long to wait when the kernel gives no connection, because we have too many files open, say.
const RETRY: Duration = Duration::from_millis(200);

/// The addresses to listen on: of the command line, else of the configuration, else the default. Without TLS none of
/// them may be reached from other machines.
pub(super) fn addresses(given: &[SocketAddr], config: &ServeConfig) -> anyhow::Result<Vec<SocketAddr>> {
    let addresses = match (given, &config.listen[..]) {
        ([], []) => vec![DEFAULT],
        ([], configured) => configured.to_vec(),
        (given, _) => given.to_vec(),
    };
    match addresses.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
        Some(address) if !config.tls_terminated => anyhow::bail!(
            "{address} can be reached from other machines, who could read and change what is sent without TLS; listen \
             on 127.0.0.1, or put a proxy that speaks TLS in front and say \"tls-terminated\": true in \"serve\" of the \
             configuration"
        ),
        _ => Ok(addresses),
    }
}

/// Listens on all of them.
pub(super) async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let listener = TcpListener::bind(address).await.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => anyhow::anyhow!(
                "can't listen on {address}: something listens there already; end it, or choose another port with --listen"
            ),
            _ => anyhow::Error::new(error).context(format!("can't listen on {address}")),
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Takes connections from the network until the server stops.
pub(super) async fn network(server: Arc<Server>, listener: TcpListener) {
    take_all(&server, async || {
        let (stream, address) = listener.accept().await?;
        // Requests are small, and somebody waits for each.
        let _ = stream.set_nodelay(true);
        Ok((stream, Peer::Network(address)))
    })
    .await;
}

/// Takes connections at the control socket until the server stops.
pub(super) async fn control(server: Arc<Server>, listener: ControlListener) {
    take_all(&server, async || Ok((listener.accept().await?, Peer::Control))).await;
}

async fn take_all<S>(server: &Arc<Server>, accept: impl AsyncFn() -> io::Result<(S, Peer)>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stopping = server.stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                accept().await.map(|connection| (connection, place))
            } => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok(((stream, peer), place)) => {
                let server = Arc::clone(server);
                tokio::spawn(async move {
                    http::connection(stream, |request| router::answer(Arc::clone(&server), peer.clone(), request)).await;
                    drop(place);
                });
            }
            Err(_) => sleep(RETRY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &[&str], tls_terminated: bool) -> ServeConfig {
        let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
        ServeConfig { listen, tls_terminated, ..ServeConfig::default() }
    }

    #[test]
    fn the_command_line_comes_before_the_configuration_and_that_before_the_default() {
        let given = "127.0.0.1:1".parse().unwrap();
        let configured = config(&["[::1]:2"], false);
        assert_eq!(addresses(&[given], &configured).unwrap(), [given]);
        assert_eq!(addresses(&[], &configured).unwrap(), configured.listen);
        assert_eq!(addresses(&[], &config(&[], false)).unwrap(), [DEFAULT]);
    }

    #[test]
    fn listening_beyond_loopback_without_tls_is_refused_with_the_remedy() {
        for address in ["0.0.0.0:8000", "192.0.2.1:8000", "[::]:8000", "[2001:db8::1]:8000"] {
            let error = addresses(&[], &config(&["127.0.0.1:8000", address], false)).unwrap_err().to_string();
            assert!(error.contains(address) && error.contains("tls-terminated"), "{error}");
            assert!(addresses(&[], &config(&[address], true)).is_ok());
        }
    }
}
