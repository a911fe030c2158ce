//! What our TCP connections have in common: each is as fast as it can be.
//!
//! Small requests go out at once, since somebody waits for each. On loopback, where there is no line to share, nothing
//! is paced: where the system has BBR for everything, pacing takes a tenth of the rate and more. That must be said
//! before a connection is there: what BBR began to pace stays paced, whatever is chosen later (`bbr_init` of
//! net/ipv4/tcp_bbr.c sets `sk_pacing_status`, and nobody takes it back).

use std::{io, net::SocketAddr, os::fd::AsFd};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// An algorithm that every kernel has and every user may choose (net/ipv4/tcp_cong.c), and that does not pace.
const UNPACED: &str = "reno";
/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens. What comes in on an address of loopback is not paced.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connects to the first address of `host` that answers.
#[cfg(feature = "serve")]
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut refusal = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        // Where the system has no IPv6, there is no socket for it, and another address may do.
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

#[cfg(feature = "serve")]
async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket(address)?.connect(address).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Lets a connection that is there be as fast as it can.
pub(crate) fn hasten(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    if let Ok(peer) = stream.peer_addr() {
        unpace(stream, peer);
    }
}

/// For connections from or to `address`.
fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    unpace(&socket, address);
    Ok(socket)
}

fn unpace(socket: impl AsFd, address: SocketAddr) {
    if address.ip().to_canonical().is_loopback() {
        let _ = rustix::net::sockopt::set_tcp_congestion(socket, UNPACED);
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::tcp_congestion;

    use super::*;

    /// Both ends of a connection on loopback.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = socket(address).unwrap();
        let (near, far) = tokio::join!(socket.connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_on_loopback_is_never_paced_at_either_end() {
        let (near, far) = pair().await;
        assert_eq!(tcp_congestion(&near).unwrap(), UNPACED);
        assert_eq!(tcp_congestion(&far).unwrap(), UNPACED);
    }

    #[tokio::test]
    async fn a_connection_from_loopback_to_any_address_leaves_the_systems_choice_and_delays_nothing()
     {
        let listener = listen("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        hasten(&far);
        assert!(far.nodelay().unwrap());
        assert_eq!(tcp_congestion(&far).unwrap(), UNPACED);
    }

    #[test]
    fn other_connections_keep_what_the_system_has_chosen() {
        let socket = socket("192.0.2.1:1".parse().unwrap()).unwrap();
        let system = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        assert_eq!(tcp_congestion(socket).unwrap(), system.trim());
    }

    #[cfg(feature = "serve")]
    #[tokio::test]
    async fn the_next_address_of_a_name_is_tried_where_one_refuses() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Often ::1 comes first, where nobody listens.
        let stream = connect("localhost", port).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(stream.peer_addr().unwrap().port(), port);
    }

    #[cfg(feature = "serve")]
    #[tokio::test]
    async fn who_cannot_connect_says_why() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = connect("127.0.0.1", port).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
