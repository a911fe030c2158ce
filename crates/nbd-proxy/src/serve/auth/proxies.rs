//! Proxies in front of us: what they say of their clients, and whether that counts.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap,
    header::{HeaderName, InvalidHeaderName},
};

use super::headers::single;
use crate::config::TrustedProxies;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Those that are listed.
#[derive(Debug)]
pub(super) struct Proxies {
    listed: TrustedProxies,
    user_header: Option<HeaderName>,
}

impl Proxies {
    pub(super) fn new(listed: TrustedProxies) -> Result<Self, InvalidHeaderName> {
        let user_header = listed.user_header.as_deref().map(str::parse).transpose()?;
        Ok(Self {
            listed,
            user_header,
        })
    }

    /// Whether any are listed.
    pub(super) fn exist(&self) -> bool {
        !self.listed.addresses.is_empty()
    }

    /// Whether what comes from `peer` may speak for others.
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.listed.contains(peer)
    }

    /// Whose request a proxy at `peer` says this is.
    pub(super) fn user<'h>(&self, peer: IpAddr, headers: &'h HeaderMap) -> Option<&'h str> {
        let header = self.user_header.as_ref().filter(|_| self.trusts(peer))?;
        single(headers, header)
    }

    /// The scheme that the client of a proxy at `peer` speaks.
    pub(super) fn scheme<'h>(&self, peer: IpAddr, headers: &'h HeaderMap) -> Option<&'h str> {
        single(headers, &FORWARDED_PROTO).filter(|_| self.trusts(peer))
    }

    /// Where a request comes from. Each proxy appends the address of whom it was asked by, so counting from the end the
    /// first that is no proxy of ours is the client; what stands before it is what that client chose to write.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let values = headers.get_all(&FORWARDED_FOR);
        let hops: Vec<Option<IpAddr>> = (values.iter())
            .flat_map(|value| value.to_str().unwrap_or("?").split(','))
            .map(|hop| address(hop.trim()))
            .collect();
        for hop in hops.into_iter().rev() {
            match hop {
                Some(hop) if self.trusts(client) => client = hop,
                _ => break,
            }
        }
        client
    }
}

/// An address, with a port perhaps.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    address
        .or_else(with_port)
        .map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies() -> Proxies {
        Proxies::new(TrustedProxies {
            addresses: vec!["10.0.0.0/8".parse().unwrap()],
            user_header: Some("x-remote-user".to_owned()),
        })
        .unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_listed_proxy_says_who_its_client_is_and_nobody_else_does() {
        let headers = headers(&[("x-remote-user", "eva"), ("x-forwarded-proto", "https")]);
        for (peer, user, scheme) in [
            ("10.0.0.1", Some("eva"), Some("https")),
            ("::ffff:10.0.0.1", Some("eva"), Some("https")),
            ("192.0.2.1", None, None),
            ("127.0.0.1", None, None),
        ] {
            assert_eq!(proxies().user(ip(peer), &headers), user, "{peer}");
            assert_eq!(proxies().scheme(ip(peer), &headers), scheme, "{peer}");
        }
    }

    #[test]
    fn a_user_who_is_named_twice_is_nobody() {
        let headers = headers(&[("x-remote-user", "eva"), ("x-remote-user", "max")]);
        assert_eq!(proxies().user(ip("10.0.0.1"), &headers), None);
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_proxy_of_ours() {
        for (peer, forwarded, client) in [
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
            ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
            ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
            ("10.0.0.1", "192.0.2.7, 10.1.1.1", "192.0.2.7"),
            ("10.0.0.1", "127.0.0.1, 192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "192.0.2.7, nonsense", "10.0.0.1"),
            ("10.0.0.1", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
            ("192.0.2.9", "127.0.0.1", "192.0.2.9"),
        ] {
            let headers = headers(&[("x-forwarded-for", forwarded)]);
            assert_eq!(
                proxies().client(ip(peer), &headers),
                ip(client),
                "{forwarded}"
            );
        }
        let two = headers(&[
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", "192.0.2.7"),
        ]);
        assert_eq!(proxies().client(ip("10.0.0.1"), &two), ip("192.0.2.7"));
    }
}
