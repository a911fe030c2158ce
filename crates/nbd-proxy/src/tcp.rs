//! What our TCP connections have in common.

use tokio::net::TcpStream;

/// An algorithm that every kernel has and every user may choose (net/ipv4/tcp_cong.c), and that does not pace.
const UNPACED: &str = "reno";

/// Lets a connection be as fast as it can.
///
/// Small requests go out at once, since somebody waits for each. On loopback, where there is no line to share, nothing
/// is paced either: where the system has BBR for everything, pacing takes a tenth of the rate.
pub(crate) fn hasten(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let is_local = |peer: std::net::SocketAddr| peer.ip().to_canonical().is_loopback();
    if stream.peer_addr().is_ok_and(is_local) {
        let _ = rustix::net::sockopt::set_tcp_congestion(stream, UNPACED);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_on_loopback_delays_and_paces_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        hasten(&stream);
        assert!(stream.nodelay().unwrap());
        let chosen = rustix::net::sockopt::tcp_congestion(&stream).unwrap();
        assert_eq!(chosen, UNPACED);
    }
}
