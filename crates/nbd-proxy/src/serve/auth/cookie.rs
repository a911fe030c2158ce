//! The cookie of a login: its name, and the headers that set it and take it away.

use hyper::{HeaderMap, header::HeaderValue};

use super::headers::cookies;
use crate::secret::Secret;

/// Names the cookie. Cookies don't know ports, so the name carries ours: two servers on one host don't take each
/// other's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cookie {
    port: u16,
}

impl Cookie {
    pub(super) fn new(port: u16) -> Self {
        Self { port }
    }

    /// `__Host-` keeps other hosts of the domain, and whoever can change what is sent without TLS, from planting one
    /// (RFC 6265bis, section 4.1.3.2). Browsers take that name over TLS alone.
    fn name(self, secure: bool) -> String {
        let prefix = if secure { "__Host-" } else { "" };
        format!("{prefix}nbd-proxy-{}", self.port)
    }

    /// What the browser presents. `secure`: the request came over TLS.
    pub(super) fn values(self, headers: &HeaderMap, secure: bool) -> Vec<&str> {
        cookies(headers, &self.name(secure)).collect()
    }

    /// Until the browser ends: we say when a login does.
    pub(super) fn set(self, value: &Secret, secure: bool) -> HeaderValue {
        self.header(value.reveal(), "", secure)
    }

    pub(super) fn remove(self, secure: bool) -> HeaderValue {
        self.header("", "; Max-Age=0", secure)
    }

    fn header(self, value: &str, age: &str, secure: bool) -> HeaderValue {
        let name = self.name(secure);
        let tls = if secure { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict{tls}{age}");
        // Our own characters, all of which a header may hold.
        let mut header =
            HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        header.set_sensitive(true);
        header
    }
}

#[cfg(test)]
mod tests {
    use hyper::header;

    use super::*;

    #[test]
    fn over_tls_the_cookie_is_secure_and_no_other_host_can_plant_it() {
        let cookie = Cookie::new(8000);
        let secret = Secret::generate().unwrap();
        let value = secret.reveal();
        assert_eq!(
            cookie.set(&secret, false),
            format!("nbd-proxy-8000={value}; Path=/; HttpOnly; SameSite=Strict")
        );
        assert_eq!(
            cookie.set(&secret, true),
            format!("__Host-nbd-proxy-8000={value}; Path=/; HttpOnly; SameSite=Strict; Secure")
        );
        assert_eq!(
            cookie.remove(true),
            "__Host-nbd-proxy-8000=; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=0"
        );
    }

    #[test]
    fn over_tls_a_cookie_that_anybody_could_have_planted_is_not_looked_at() {
        let cookie = Cookie::new(8000);
        let text =
            "theme=dark; nbd-proxy-8000=planted; __Host-nbd-proxy-8000=ours; nbd-proxy-8001=other";
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static(text));
        assert_eq!(cookie.values(&headers, true), ["ours"]);
        assert_eq!(cookie.values(&headers, false), ["planted"]);
    }
}
