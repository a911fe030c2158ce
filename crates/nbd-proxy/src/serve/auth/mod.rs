//! Who it is, in one place: which addresses we answer to, and whom.

mod cookie;
mod headers;
mod host;
mod logins;
mod secret;

use std::path::PathBuf;

use hyper::{
    HeaderMap, Uri,
    header::{self, HeaderName, HeaderValue},
};

use super::{Client, Peer};
use crate::config::ServeConfig;
use cookie::Cookie;
use headers::{bearer, single, sole_subprotocol};
use host::Names;
pub(super) use host::{Host, WrongAddress};
use logins::{Found, Logins};
pub(crate) use secret::{Secret, random_hex};

/// Who holds the address that we printed, or sits at the machine.
const LOCAL: &str = "local";

/// Who somebody has shown to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user's name: `local` for the holder of the address that we printed.
    pub(crate) user: String,
    proof: Proof,
}

impl Identity {
    fn local(proof: Proof) -> Self {
        Self {
            user: LOCAL.to_owned(),
            proof,
        }
    }
}

/// How they have shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Proof {
    /// They sit at the machine.
    Control,
    /// By the secret in the address that we printed.
    Address,
    /// By a cookie.
    Login(Found),
    /// By a certificate.
    Certificate,
}

/// Decides who somebody is.
#[derive(Debug)]
pub(super) struct Auth {
    token: Secret,
    names: Names,
    cookie: Cookie,
    logins: Logins,
    tls_terminated: bool,
}

impl Auth {
    /// A new secret for the address that is printed, and the logins of those who have signed in before. `port` is the
    /// one that we listen on.
    pub(super) fn new(
        port: u16,
        config: &ServeConfig,
        state_dir: anyhow::Result<PathBuf>,
    ) -> Result<Self, getrandom::Error> {
        Ok(Self {
            token: Secret::generate()?,
            names: Names::new(&config.hosts, &config.origins),
            cookie: Cookie::new(port),
            logins: Logins::open(state_dir),
            tls_terminated: config.tls_terminated,
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
        self.names.check(uri, headers)
    }

    /// Who sent this request: by the cookie, or as a program by `Authorization: Bearer` or, on a WebSocket, by a sole
    /// subprotocol; and without any of them by the certificate of the connection, which is always there.
    pub(super) fn identify(&self, client: &Client, headers: &HeaderMap) -> Option<Identity> {
        if let Peer::Control = client.peer {
            return Some(Identity::local(Proof::Control));
        }
        let token = single(headers, &header::AUTHORIZATION)
            .and_then(bearer)
            .or_else(|| sole_subprotocol(headers));
        if token.is_some_and(|token| self.is_token(token)) {
            return Some(Identity::local(Proof::Address));
        }
        let cookies = self.cookie.values(headers, self.is_secure(client, headers));
        let login = cookies
            .into_iter()
            .find_map(|value| self.logins.find(value));
        let login = login.map(|found| Identity {
            user: found.user.clone(),
            proof: Proof::Login(found),
        });
        login.or_else(|| by_certificate(client.certificate.as_deref()?))
    }

    /// Trades the token for the header that sets a new cookie, or None.
    pub(super) async fn log_in(
        &self,
        client: &Client,
        headers: &HeaderMap,
        token: &str,
    ) -> Option<HeaderValue> {
        if !self.is_token(token) {
            return None;
        }
        let secret = self.logins.create(LOCAL).await.ok()?;
        self.cookie.set(&secret, self.is_secure(client, headers))
    }

    /// Ends the login that this request came by, if any. Returns the header that takes its cookie away.
    pub(super) async fn log_out(
        &self,
        client: &Client,
        headers: &HeaderMap,
    ) -> Option<HeaderValue> {
        let secure = self.is_secure(client, headers);
        for value in self.cookie.values(headers, secure) {
            if let Some(found) = self.logins.find(value) {
                self.logins.revoke(&found.id).await;
            }
        }
        self.cookie.remove(secure)
    }

    /// A login was used: it lives on. Returns the header that gives its cookie a new value when that is due.
    pub(super) async fn renew(
        &self,
        client: &Client,
        headers: &HeaderMap,
        identity: &Identity,
    ) -> Option<HeaderValue> {
        let Proof::Login(found) = &identity.proof else {
            return None;
        };
        let secret = self.logins.renew(found).await?;
        self.cookie.set(&secret, self.is_secure(client, headers))
    }

    /// A login is in use by something that lasts, such as a link.
    pub(super) async fn touch(&self, identity: &Identity) {
        if let Proof::Login(found) = &identity.proof {
            self.logins.touch(&found.id).await;
        }
    }

    fn is_token(&self, candidate: &str) -> bool {
        secret::Digest::of(candidate) == self.token.digest()
    }

    /// Whether the browser speaks TLS, with us or with a proxy in front of us that says so.
    fn is_secure(&self, client: &Client, headers: &HeaderMap) -> bool {
        client.tls
            || self.tls_terminated
                && single(headers, &HeaderName::from_static("x-forwarded-proto"))
                    .is_none_or(|scheme| scheme.eq_ignore_ascii_case("https"))
    }
}

/// No authority of certificates can make somebody the one who sits at the machine.
fn by_certificate(name: &str) -> Option<Identity> {
    (name != LOCAL).then(|| Identity {
        user: name.to_owned(),
        proof: Proof::Certificate,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn client(tls: bool) -> Client {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let peer = Peer::Network("192.0.2.1:1000".parse().unwrap());
        Client {
            tls,
            ..Client::new(peer, places.acquire_owned().await.unwrap())
        }
    }

    fn auth(config: &ServeConfig) -> Auth {
        Auth::new(8000, config, Err(anyhow::anyhow!("a test"))).unwrap()
    }

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn user(auth: &Auth, client: &Client, name: HeaderName, value: &str) -> Option<String> {
        auth.identify(client, &headers(&[(name, value)]))
            .map(|identity| identity.user)
    }

    /// The pair that a browser sends back.
    fn pair(set_cookie: &HeaderValue) -> String {
        let text = set_cookie.to_str().unwrap();
        text.split(';').next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn the_token_and_the_cookie_it_was_traded_for_tell_who_it_is() {
        let auth = auth(&ServeConfig::default());
        let client = client(false).await;
        let token = auth.token().reveal();
        let login = auth.log_in(&client, &HeaderMap::new(), token).await;
        let cookie = pair(&login.unwrap());
        for (name, value) in [
            (header::COOKIE, format!("theme=dark; {cookie}")),
            (header::AUTHORIZATION, format!("Bearer {token}")),
            (header::AUTHORIZATION, format!("bearer {token}")),
            (header::SEC_WEBSOCKET_PROTOCOL, token.to_owned()),
        ] {
            let found = user(&auth, &client, name, &value);
            assert_eq!(found.as_deref(), Some(LOCAL), "{value}");
        }
    }

    #[tokio::test]
    async fn anything_else_tells_nothing() {
        let auth = auth(&ServeConfig::default());
        let client = client(false).await;
        let token = auth.token().reveal();
        let short = &token[1..];
        let login = auth.log_in(&client, &HeaderMap::new(), token).await;
        let cookie = pair(&login.unwrap());
        for (name, value) in [
            (header::COOKIE, format!("nbd-proxy-8000={token}")),
            (header::COOKIE, cookie.replace("8000", "8001")),
            (header::AUTHORIZATION, format!("Basic {token}")),
            (header::AUTHORIZATION, token.to_owned()),
            (header::AUTHORIZATION, format!("Bearer {short}")),
            (header::SEC_WEBSOCKET_PROTOCOL, format!("{token}, other")),
            (header::SEC_WEBSOCKET_PROTOCOL, short.to_owned()),
        ] {
            assert_eq!(user(&auth, &client, name, &value), None, "{value}");
        }
        assert_eq!(auth.identify(&client, &HeaderMap::new()), None);
        for wrong in ["", short] {
            let login = auth.log_in(&client, &HeaderMap::new(), wrong).await;
            assert!(login.is_none());
        }
    }

    #[tokio::test]
    async fn a_certificate_tells_who_it_is_where_nothing_else_does() {
        let auth = auth(&ServeConfig::default());
        let shows = async |name: &str| Client {
            certificate: Some(name.to_owned()),
            ..client(true).await
        };
        let alice = shows("alice").await;
        let identity = auth.identify(&alice, &HeaderMap::new()).unwrap();
        assert_eq!(identity.user, "alice");
        let token = format!("Bearer {}", auth.token().reveal());
        let found = user(&auth, &alice, header::AUTHORIZATION, &token);
        assert_eq!(found.as_deref(), Some(LOCAL));
        let found = user(&auth, &alice, header::AUTHORIZATION, "Bearer wrong");
        assert_eq!(found.as_deref(), Some("alice"));
    }

    #[tokio::test]
    async fn a_certificate_for_the_name_local_does_not_make_its_holder_local() {
        let auth = auth(&ServeConfig::default());
        let client = Client {
            certificate: Some(LOCAL.to_owned()),
            ..client(true).await
        };
        assert_eq!(auth.identify(&client, &HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_proxy_that_speaks_tls_makes_the_cookie_a_secure_one() {
        let behind = auth(&ServeConfig {
            tls_terminated: true,
            ..ServeConfig::default()
        });
        let alone = auth(&ServeConfig::default());
        let proto = |value| headers(&[(HeaderName::from_static("x-forwarded-proto"), value)]);
        for (auth, tls, headers, secure) in [
            (&alone, false, HeaderMap::new(), false),
            (&alone, false, proto("https"), false),
            (&alone, true, HeaderMap::new(), true),
            (&behind, false, HeaderMap::new(), true),
            (&behind, false, proto("https"), true),
            (&behind, false, proto("http"), false),
        ] {
            let client = client(tls).await;
            let login = auth.log_in(&client, &headers, auth.token().reveal());
            let cookie = login.await.unwrap();
            assert_eq!(cookie.to_str().unwrap().contains("Secure"), secure);
        }
    }
}
