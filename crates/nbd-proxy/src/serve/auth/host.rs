//! Which addresses we answer to, and whose pages may use us.

use std::{fmt, net::Ipv6Addr};

use hyper::{HeaderMap, Uri, header};

use super::headers::single;

/// A request that came to a wrong address, or from a wrong page. The sentence says which and what would help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum WrongAddress {
    /// A name that is not ours: DNS rebinding, or a name that nobody configured.
    #[error(
        "the Host \"{0}\" is none of this server's names; if it should be, add it to \"hosts\" in \"serve\""
    )]
    Host(String),
    /// Another site's page.
    #[error(
        "a page of \"{0}\" may not use this server; if it should, add it to \"origins\" in \"serve\""
    )]
    Origin(String),
}

/// The names that we go by, and the pages that may use us.
#[derive(Debug)]
pub(crate) struct Names {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Names {
    /// `hosts` are names that we go by beside IP addresses and localhost; `origins` are foreign pages that may use us
    /// (`https://panel.example`).
    pub(in crate::serve) fn new(hosts: &[String], origins: &[String]) -> Self {
        Self {
            hosts: hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
            origins: origins
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
        }
    }

    /// Checks that the request came to a name of ours and, if a page sent it, from a page of that name. Returns the
    /// Host as it was understood. Programs send no Origin. `secure`: the request came over TLS.
    pub(in crate::serve) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        secure: bool,
    ) -> Result<Host, WrongAddress> {
        let text = single(headers, &header::HOST).unwrap_or_default();
        let host = Host::parse(text)
            .filter(|host| self.is_our_name(host))
            .filter(|host| {
                uri.authority()
                    .is_none_or(|authority| Host::parse(authority.as_str()).as_ref() == Some(host))
            })
            .ok_or_else(|| WrongAddress::Host(text.to_owned()))?;
        if headers.contains_key(header::ORIGIN) {
            let origin = single(headers, &header::ORIGIN).unwrap_or_default();
            if !self.is_our_page(&host, origin, secure) {
                return Err(WrongAddress::Origin(origin.to_owned()));
            }
        }
        Ok(host)
    }

    fn is_our_name(&self, host: &Host) -> bool {
        host.is_address() || host.is_loopback() || self.hosts.contains(&host.name)
    }

    /// Names compare without ports: a page of another port of the same host is as trusted as that host. Not so one that
    /// came without TLS where we are asked with it: anybody on the way may have written it.
    fn is_our_page(&self, host: &Host, origin: &str, secure: bool) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.origins.contains(&origin) {
            return true;
        }
        let authority = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://").filter(|_| !secure));
        authority.and_then(Host::parse).is_some_and(|page| {
            page.name == host.name || (page.is_loopback() && host.is_loopback())
        })
    }
}

/// A `Host` header, or the same part of an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) struct Host {
    /// In lower case, without the final dot of a rooted name; an IPv6 address in its brackets.
    name: String,
    port: Option<u16>,
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
            None => None,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        (is_name || ipv6(&name).is_some()).then_some(Self { name, port })
    }

    /// Nobody can make an IP address point elsewhere, so it is safe from DNS rebinding.
    fn is_address(&self) -> bool {
        self.name.parse::<std::net::Ipv4Addr>().is_ok() || ipv6(&self.name).is_some()
    }

    fn is_loopback(&self) -> bool {
        self.name == "localhost"
            || self
                .name
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
            || ipv6(&self.name).is_some_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        self.port
            .map_or(Ok(()), |port| write!(formatter, ":{port}"))
    }
}

fn ipv6(name: &str) -> Option<Ipv6Addr> {
    name.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn names() -> Names {
        Names::new(
            &["Disk.example".to_owned()],
            &["https://panel.example/".to_owned()],
        )
    }

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn address(host: &str, origin: Option<&str>) -> Result<String, WrongAddress> {
        let mut headers = headers(&[(header::HOST, host)]);
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        names()
            .check(&Uri::from_static("/"), &headers, false)
            .map(|host| host.to_string())
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_ours() {
        for host in [
            "127.0.0.1:8000",
            "[::1]:8000",
            "192.168.7.9",
            "localhost",
            "LOCALHOST.:1",
            "disk.example:443",
        ] {
            assert!(address(host, None).is_ok(), "{host}");
        }
        assert_eq!(
            address("LocalHost.:80", None),
            Ok("localhost:80".to_owned())
        );
    }

    #[test]
    fn a_rebound_or_malformed_host_is_refused() {
        for host in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil",
            "localhost:x",
            "[::1",
            "a b",
            "localhost:99999",
        ] {
            assert_eq!(
                address(host, None),
                Err(WrongAddress::Host(host.to_owned()))
            );
        }
    }

    #[test]
    fn an_absolute_form_that_contradicts_the_host_is_refused() {
        let headers = headers(&[(header::HOST, "localhost")]);
        assert!(
            names()
                .check(&Uri::from_static("http://evil.example/"), &headers, false)
                .is_err()
        );
        assert!(
            names()
                .check(&Uri::from_static("http://localhost/"), &headers, false)
                .is_ok()
        );
    }

    #[test]
    fn two_hosts_are_refused() {
        let mut headers = headers(&[(header::HOST, "localhost")]);
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(
            names()
                .check(&Uri::from_static("/"), &headers, false)
                .is_err()
        );
    }

    #[test]
    fn pages_of_the_same_name_and_configured_origins_pass() {
        for (host, origin) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("127.0.0.1:8000", "http://localhost:3000"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("disk.example", "https://disk.example:8443"),
            ("disk.example", "https://panel.example"),
        ] {
            assert!(address(host, Some(origin)).is_ok(), "{origin}");
        }
    }

    #[test]
    fn over_tls_a_page_that_came_without_it_is_refused() {
        let check = |origin: &str| {
            let headers = headers(&[(header::HOST, "disk.example"), (header::ORIGIN, origin)]);
            names().check(&Uri::from_static("/"), &headers, true)
        };
        assert!(check("https://disk.example").is_ok());
        assert!(check("https://panel.example").is_ok());
        assert_eq!(
            check("http://disk.example"),
            Err(WrongAddress::Origin("http://disk.example".to_owned()))
        );
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        for (host, origin) in [
            ("127.0.0.1:8000", "http://evil.example"),
            ("127.0.0.1:8000", "http://10.0.0.1:8000"),
            ("127.0.0.1:8000", "null"),
            ("127.0.0.1:8000", ""),
            ("127.0.0.1:8000", "file://localhost"),
            ("127.0.0.1:8000", "http://localhost.evil.example"),
            ("disk.example", "https://panel.example:444"),
        ] {
            assert_eq!(
                address(host, Some(origin)),
                Err(WrongAddress::Origin(origin.to_owned()))
            );
        }
    }
}
