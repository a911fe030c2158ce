//! Who it is, in one place: which addresses we answer to, and whom.

mod attempts;
mod cookie;
mod hasher;
mod headers;
mod host;
mod login;
mod logins;
mod proxies;
mod watched;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::Context as _;
use hyper::{HeaderMap, Uri, header};
use tokio::sync::watch;

use super::{Client, Peer};
use crate::{
    accounts::{self, Tokens, Users},
    config::{LOCAL, ServeConfig, check_name},
    secret::{Digest, Secret},
};
use attempts::Attempts;
use cookie::Cookie;
use hasher::Hasher;
use headers::{bearer, single, sole_subprotocol};
use host::Names;
pub(super) use host::{Host, WrongAddress};
pub(super) use login::{Credentials, LoginError};
use logins::{Found, Logins, Means};
use proxies::Proxies;
use watched::Watched;

/// Who somebody has shown to be.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The user's name: `local` for the holder of the address that we printed.
    pub(crate) user: String,
    proof: Proof,
}

/// How they have shown it.
#[derive(Debug, Clone)]
enum Proof {
    /// They sit at the machine.
    Control,
    /// By the secret in the address that we printed.
    Address,
    /// By a token for programs.
    Token(Digest),
    /// By a cookie.
    Login(Found),
    /// By the certificate of their end of TLS.
    Certificate,
    /// A proxy in front of us has asked them.
    Proxy,
}

impl Identity {
    fn local(proof: Proof) -> Self {
        Self {
            user: LOCAL.to_owned(),
            proof,
        }
    }

    /// Somebody for whom another speaks. Nobody but we ourselves says who `local` is.
    fn foreign(user: &str, proof: Proof) -> Option<Self> {
        (user != LOCAL && check_name(user).is_ok()).then(|| Self {
            user: user.to_owned(),
            proof,
        })
    }

    /// Whether there is a login to end.
    pub(super) fn is_login(&self) -> bool {
        matches!(self.proof, Proof::Login(_))
    }
}

/// Decides who somebody is.
#[derive(Debug)]
pub(super) struct Auth {
    /// In the address that is printed, unless there is another way for people.
    token: Option<Secret>,
    names: Names,
    cookie: Cookie,
    logins: Logins,
    users: Option<Passwords>,
    tokens: Option<Watched<Tokens>>,
    proxies: Proxies,
    tls_terminated: bool,
    /// Whether somebody else may say who people are.
    names_anybody: bool,
    attempts: Attempts,
    /// Grows when somebody logs out.
    revocations: watch::Sender<u64>,
}

/// Users, and who checks their passwords.
#[derive(Debug)]
struct Passwords {
    users: Watched<Users>,
    hasher: Hasher,
}

impl Auth {
    /// A new secret for the address that is printed, and the logins of those who have signed in before. `port` is the
    /// one that we listen on.
    pub(super) fn new(
        port: u16,
        config: &ServeConfig,
        state_dir: anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Self> {
        let secret = || Secret::generate().context("no random numbers");
        let access = &config.access;
        let passwords = |path: &PathBuf| -> anyhow::Result<Passwords> {
            Ok(Passwords {
                users: Watched::open(path)?,
                hasher: Hasher::start().context("no thread for passwords")?,
            })
        };
        let tokens = access.tokens.as_deref().map(Watched::open);
        Ok(Self {
            token: (!config.knows_people()).then(secret).transpose()?,
            names: Names::new(&config.hosts, &config.origins),
            cookie: Cookie::new(port),
            logins: Logins::open(state_dir),
            users: access.users.as_ref().map(passwords).transpose()?,
            tokens: tokens.transpose()?,
            proxies: Proxies::new(access.proxies.clone())?,
            tls_terminated: config.tls_terminated,
            names_anybody: config
                .tls
                .as_ref()
                .is_some_and(|tls| tls.client_ca.is_some())
                || access.proxies.user_header.is_some(),
            attempts: Attempts::default(),
            revocations: watch::Sender::default(),
        })
    }

    /// The secret in the address that is printed, if there is one.
    pub(super) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Whether users sign in with passwords.
    pub(super) fn takes_passwords(&self) -> bool {
        self.users.is_some()
    }

    /// Whether a token opens anything.
    pub(super) fn takes_tokens(&self) -> bool {
        self.token.is_some() || self.tokens.is_some()
    }

    /// Whether somebody of this name could come, as far as we can say: certificates and proxies may name anybody.
    pub(super) fn may_know(&self, user: &str) -> bool {
        let is_user = (self.users.as_ref())
            .is_some_and(|passwords| passwords.users.current().get(user).is_some());
        let has_token = (self.tokens.as_ref())
            .is_some_and(|tokens| tokens.current().iter().any(|(_, token)| token.user == user));
        is_user || has_token || user == LOCAL || self.names_anybody
    }

    /// Checks that the request came to a name of ours and, if a page sent it, from a page of that name. Returns the
    /// Host as it was understood. Programs send no Origin.
    pub(super) fn check_address(
        &self,
        client: &Client,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Host, WrongAddress> {
        let secure = self.is_secure(client, headers);
        self.names.check(uri, headers, secure)
    }

    /// Who sent this request: a program by `Authorization: Bearer` or, on a WebSocket, by a sole subprotocol; a browser
    /// by its cookie; anybody by a certificate, or by the word of a proxy that we trust.
    pub(super) fn identify(&self, client: &Client, headers: &HeaderMap) -> Option<Identity> {
        let Peer::Network(peer) = client.peer else {
            return Some(Identity::local(Proof::Control));
        };
        let token = single(headers, &header::AUTHORIZATION)
            .and_then(bearer)
            .or_else(|| sole_subprotocol(headers));
        let certificate = client.certificate.as_deref();
        token
            .and_then(|token| self.holder(token))
            .or_else(|| self.guest(client, headers))
            .or_else(|| Identity::foreign(certificate?, Proof::Certificate))
            .or_else(|| {
                let user = self.proxies.user(peer.ip(), headers)?;
                Identity::foreign(user, Proof::Proxy)
            })
    }

    /// Who holds this token.
    fn holder(&self, token: &str) -> Option<Identity> {
        let digest = Digest::of(token);
        if self
            .token
            .as_ref()
            .is_some_and(|ours| ours.digest() == digest)
        {
            return Some(Identity::local(Proof::Address));
        }
        let tokens = self.tokens.as_ref()?.current();
        let (_, token) = tokens.find(digest)?;
        (!token.is_expired(accounts::now())).then(|| Identity {
            user: token.user.clone(),
            proof: Proof::Token(digest),
        })
    }

    /// Who has signed in, and got this request's cookie.
    fn guest(&self, client: &Client, headers: &HeaderMap) -> Option<Identity> {
        let cookies = self.cookie.values(headers, self.is_secure(client, headers));
        let found = cookies.into_iter().find_map(|one| self.logins.find(one))?;
        let identity = Identity {
            user: found.user.clone(),
            proof: Proof::Login(found),
        };
        let expired = match &identity.proof {
            Proof::Login(Found {
                means: Means::Token { sha256 },
                ..
            }) => self.is_expired(*sha256),
            _ => false,
        };
        (!expired && !self.is_revoked(&identity)).then_some(identity)
    }

    fn is_expired(&self, token: Digest) -> bool {
        let tokens = self.tokens.as_ref().map(Watched::current);
        tokens.is_some_and(|tokens| {
            (tokens.find(token)).is_some_and(|(_, token)| token.is_expired(accounts::now()))
        })
    }

    /// Whether what somebody has shown is taken back. That a login or a token comes to its own end is not meant: what
    /// it has opened may go on.
    fn is_revoked(&self, identity: &Identity) -> bool {
        let is_token = |digest| {
            let tokens = self.tokens.as_ref().map(Watched::current);
            tokens.is_some_and(|tokens| {
                (tokens.find(digest)).is_some_and(|(_, token)| token.user == identity.user)
            })
        };
        let stands = match &identity.proof {
            Proof::Control | Proof::Address | Proof::Certificate | Proof::Proxy => true,
            Proof::Token(digest) => is_token(*digest),
            Proof::Login(found) if found.is_revoked() => false,
            Proof::Login(found) => match &found.means {
                Means::Address => self.token.is_some(),
                Means::Token { sha256 } => is_token(*sha256),
                Means::Password { print } => self.users.as_ref().is_some_and(|passwords| {
                    let users = passwords.users.current();
                    (users.get(&identity.user)).is_some_and(|user| user.print() == *print)
                }),
            },
        };
        !stands
    }

    /// Waits until what somebody has shown is taken back: until they log out, or the administrator says so.
    pub(super) async fn revoked(&self, identity: &Identity) {
        let mut revocations = self.revocations.subscribe();
        let mut users = (self.users.as_ref()).map(|passwords| passwords.users.changes());
        let mut tokens = self.tokens.as_ref().map(Watched::changes);
        while !self.is_revoked(identity) {
            tokio::select! {
                _ = revocations.changed() => {}
                () = changed(&mut users) => {}
                () = changed(&mut tokens) => {}
            }
        }
    }

    /// Where a request comes from, for people.
    pub(super) fn origin(&self, client: &Client, headers: &HeaderMap) -> String {
        match client.peer {
            Peer::Network(peer) if self.proxies.trusts(peer.ip()) => {
                self.proxies.client(peer.ip(), headers).to_string()
            }
            _ => client.peer.to_string(),
        }
    }

    /// The same, for counting.
    fn address(&self, client: &Client, headers: &HeaderMap) -> IpAddr {
        match client.peer {
            Peer::Network(peer) => self.proxies.client(peer.ip(), headers),
            Peer::Control => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// Whether the browser speaks TLS, with us or with a proxy in front of us that says so. What anybody else says of
    /// it concerns their own cookie alone.
    fn is_secure(&self, client: &Client, headers: &HeaderMap) -> bool {
        let told = match client.peer {
            Peer::Network(peer) if self.proxies.exist() => {
                Some(self.proxies.scheme(peer.ip(), headers).unwrap_or("http"))
            }
            _ => single(headers, &proxies::FORWARDED_PROTO),
        };
        let is_https = |scheme: &str| scheme.eq_ignore_ascii_case("https");
        client.tls || self.tls_terminated && told.is_none_or(is_https)
    }
}

/// Waits for a change of what there may not be.
async fn changed<T>(file: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = file {
        if receiver.changed().await.is_ok() {
            return;
        }
        *file = None;
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests;
