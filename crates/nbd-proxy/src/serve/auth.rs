//! Who it is, in one place: which addresses we answer to, and whom.

use std::{fmt, net::Ipv6Addr};

use hyper::{
    HeaderMap, Uri,
    header::{self, HeaderName, HeaderValue},
};
use subtle::ConstantTimeEq as _;

/// A secret of this process: 160 random bits in hexadecimal, so that it fits an address, a cookie, and a WebSocket
/// subprotocol alike.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// A new one, from the kernel's random source.
    pub(super) fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(random_hex::<20>()?))
    }

    /// For the one line of standard output, and for a cookie.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// Takes as long wherever the two differ.
    fn matches(&self, candidate: &str) -> bool {
        self.0.as_bytes().ct_eq(candidate.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// `BYTES` random bytes from the kernel, in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who somebody has shown to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user's name: `local` for the holder of the address that we printed.
    pub(crate) user: String,
}

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

/// Decides who somebody is.
#[derive(Debug)]
pub(super) struct Auth {
    token: Secret,
    cookie: Secret,
    cookie_name: String,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Auth {
    /// New secrets. Cookies don't know ports, so the cookie's name carries `port`: two servers on one host don't take
    /// each other's. `hosts` are names that we go by beside IP addresses and localhost; `origins` are foreign pages
    /// that may use us (`https://panel.example`).
    pub(super) fn new(
        port: u16,
        hosts: &[String],
        origins: &[String],
    ) -> Result<Self, getrandom::Error> {
        Ok(Self {
            token: Secret::generate()?,
            cookie: Secret::generate()?,
            cookie_name: format!("nbd-proxy-{port}"),
            hosts: hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
            origins: origins
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
        })
    }

    /// The secret in the address that is printed.
    pub(super) fn token(&self) -> &Secret {
        &self.token
    }

    /// Checks that the request came to a name of ours and, if a page sent it, from a page of that name. Returns the
    /// Host as it was understood. Programs send no Origin.
    pub(super) fn check_address(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
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
            if !self.is_our_page(&host, origin) {
                return Err(WrongAddress::Origin(origin.to_owned()));
            }
        }
        Ok(host)
    }

    fn is_our_name(&self, host: &Host) -> bool {
        host.is_address() || host.is_loopback() || self.hosts.contains(&host.name)
    }

    /// Names compare without ports: a page of another port of the same host is as trusted as that host.
    fn is_our_page(&self, host: &Host, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.origins.contains(&origin) {
            return true;
        }
        let authority = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        authority.and_then(Host::parse).is_some_and(|page| {
            page.name == host.name || (page.is_loopback() && host.is_loopback())
        })
    }

    /// Who sent this request: by the cookie, or as a program by `Authorization: Bearer` or, on a WebSocket, by a sole
    /// subprotocol.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Option<Identity> {
        let known = cookies(headers, &self.cookie_name).any(|value| self.cookie.matches(value))
            || single(headers, &header::AUTHORIZATION)
                .and_then(bearer)
                .or_else(|| sole_subprotocol(headers))
                .is_some_and(|token| self.token.matches(token));
        known.then(local)
    }

    /// Trades the token for the cookie's header, or None.
    pub(super) fn log_in(&self, token: &str) -> Option<HeaderValue> {
        if !self.token.matches(token) {
            return None;
        }
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict",
            self.cookie_name,
            self.cookie.reveal()
        );
        let mut value = HeaderValue::try_from(cookie).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Who holds the address that we printed, or sits at the machine.
pub(super) fn local() -> Identity {
    Identity {
        user: "local".to_owned(),
    }
}

/// A `Host` header, or the same part of an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
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

/// The value of a header that may be there once only.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values
        .next()
        .is_none()
        .then(|| value.to_str().ok())
        .flatten()
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(move |pair| pair.trim().split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

/// The subprotocol of a WebSocket request that offers exactly one.
fn sole_subprotocol(headers: &HeaderMap) -> Option<&str> {
    single(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .map(str::trim)
        .filter(|value| !value.contains(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        Auth::new(
            8000,
            &["Disk.example".to_owned()],
            &["https://panel.example/".to_owned()],
        )
        .unwrap()
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
        auth()
            .check_address(&Uri::from_static("/"), &headers)
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
            auth()
                .check_address(&Uri::from_static("http://evil.example/"), &headers)
                .is_err()
        );
        assert!(
            auth()
                .check_address(&Uri::from_static("http://localhost/"), &headers)
                .is_ok()
        );
    }

    #[test]
    fn two_hosts_are_refused() {
        let mut headers = headers(&[(header::HOST, "localhost")]);
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(
            auth()
                .check_address(&Uri::from_static("/"), &headers)
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

    #[test]
    fn the_token_and_the_cookie_it_was_traded_for_tell_who_it_is() {
        let auth = auth();
        let token = auth.token().reveal();
        let set_cookie = auth.log_in(token).unwrap();
        let set_cookie = set_cookie.to_str().unwrap();
        assert!(set_cookie.starts_with("nbd-proxy-8000="));
        assert!(set_cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"));
        let cookie = set_cookie.split(';').next().unwrap();
        for (name, value) in [
            (header::COOKIE, format!("theme=dark; {cookie}")),
            (header::AUTHORIZATION, format!("Bearer {token}")),
            (header::AUTHORIZATION, format!("bearer {token}")),
            (header::SEC_WEBSOCKET_PROTOCOL, token.to_owned()),
        ] {
            assert_eq!(
                auth.identify(&headers(&[(name, &value)])),
                Some(local()),
                "{value}"
            );
        }
    }

    #[test]
    fn anything_else_tells_nothing() {
        let auth = auth();
        let token = auth.token().reveal();
        let short = &token[1..];
        for (name, value) in [
            (header::COOKIE, format!("nbd-proxy-8000={token}")),
            (
                header::COOKIE,
                format!("nbd-proxy-8001={}", auth.cookie.reveal()),
            ),
            (header::AUTHORIZATION, format!("Basic {token}")),
            (header::AUTHORIZATION, token.to_owned()),
            (header::AUTHORIZATION, format!("Bearer {short}")),
            (header::SEC_WEBSOCKET_PROTOCOL, format!("{token}, other")),
            (header::SEC_WEBSOCKET_PROTOCOL, short.to_owned()),
        ] {
            assert_eq!(auth.identify(&headers(&[(name, &value)])), None, "{value}");
        }
        assert_eq!(auth.identify(&HeaderMap::new()), None);
        assert_eq!(auth.log_in(""), None);
        assert_eq!(auth.log_in(short), None);
    }

    #[test]
    fn a_secret_is_not_printed_by_accident() {
        let secret = Secret::generate().unwrap();
        assert_eq!(secret.reveal().len(), 40);
        assert!(!format!("{secret:?}").contains(secret.reveal()));
    }
}
