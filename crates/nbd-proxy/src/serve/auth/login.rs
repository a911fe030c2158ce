//! Signing in, staying so, and signing out.

use std::time::{Duration, Instant};

use hyper::{HeaderMap, header::HeaderValue};

use super::{Auth, Identity, Means, Proof, attempts::Source, hasher::Busy};
use crate::{
    accounts::{User, password},
    config::check_name,
    serve::Client,
};

/// What somebody signs in with.
pub(in crate::serve) enum Credentials {
    /// The secret of the address that we printed, or a token for programs.
    Token(String),
    /// What people remember.
    Password {
        /// Who they say they are.
        user: String,
        /// And what only they know.
        password: String,
    },
}

/// Why somebody is not signed in. The sentences tell nobody whether there is such a user.
#[derive(Debug, thiserror::Error)]
pub(in crate::serve) enum LoginError {
    /// No such token.
    #[error(
        "this token is not valid (any more); open the address that the server printed when it started, or ask its \
         administrator for a new one"
    )]
    WrongToken,
    /// No such user, or another password.
    #[error("the user or the password is wrong")]
    WrongPassword,
    /// There are no users.
    #[error("this server knows no passwords; use the address that it printed, or a token")]
    NoPasswords,
    /// After failures before.
    #[error("too many failed attempts; try again in {} s", .0.as_secs().max(1))]
    TooSoon(Duration),
    /// Too many sign in at once.
    #[error("too many people sign in at the moment; try again in a few seconds")]
    Busy,
    /// No random numbers.
    #[error("this machine can't make a cookie: {0}")]
    Failed(#[from] getrandom::Error),
}

impl Auth {
    /// Trades what somebody signs in with for who they are, and the header that sets a new cookie.
    pub(in crate::serve) async fn log_in(
        &self,
        client: &Client,
        headers: &HeaderMap,
        credentials: Credentials,
    ) -> Result<(String, HeaderValue), LoginError> {
        let source = self.address(client, headers).into();
        let (user, means) = match credentials {
            Credentials::Token(token) => self.check_token(source, &token)?,
            Credentials::Password { user, password } => {
                let means = self.check_password(source, &user, password).await?;
                (user, means)
            }
        };
        let secret = self.logins.create(&user, means).await?;
        let cookie = self.cookie.set(&secret, self.is_secure(client, headers));
        Ok((user, cookie))
    }

    /// Nobody guesses a token, so a right one is taken also after failures.
    fn check_token(&self, source: Source, token: &str) -> Result<(String, Means), LoginError> {
        if let Some(Identity { user, proof }) = self.holder(token) {
            let means = match proof {
                Proof::Token(sha256) => Means::Token { sha256 },
                _ => Means::Address,
            };
            return Ok((user, means));
        }
        if let Some(pause) = self.attempts.pause(source, None, Instant::now()) {
            return Err(LoginError::TooSoon(pause));
        }
        self.attempts.begun(source, None, Instant::now());
        Err(LoginError::WrongToken)
    }

    /// Takes as long whether there is such a user or not.
    async fn check_password(
        &self,
        source: Source,
        user: &str,
        password: String,
    ) -> Result<Means, LoginError> {
        let passwords = self.users.as_ref().ok_or(LoginError::NoPasswords)?;
        // What can be no name is not remembered either.
        let counted = check_name(user).is_ok().then_some(user);
        if let Some(pause) = self.attempts.pause(source, counted, Instant::now()) {
            return Err(LoginError::TooSoon(pause));
        }
        self.attempts.begun(source, counted, Instant::now());
        let users = passwords.users.current();
        let found = users.get(user);
        let hash = found.map_or(password::DUMMY, User::password).to_owned();
        match (passwords.hasher.check(password, hash).await, found) {
            (Ok(true), Some(found)) => {
                self.attempts.succeeded(source, user, Instant::now());
                Ok(Means::Password {
                    print: found.print(),
                })
            }
            (Ok(_), _) => Err(LoginError::WrongPassword),
            (Err(Busy), _) => {
                self.attempts.forgiven(source, counted);
                Err(LoginError::Busy)
            }
        }
    }

    /// Ends the login that this request came by, if any, and what it has opened. Returns the header that takes its
    /// cookie away.
    pub(in crate::serve) async fn log_out(
        &self,
        client: &Client,
        headers: &HeaderMap,
    ) -> HeaderValue {
        let secure = self.is_secure(client, headers);
        for value in self.cookie.values(headers, secure) {
            if let Some(found) = self.logins.find(value) {
                self.logins.revoke(&found).await;
                // Every link looks then, so strangers can't have it happen.
                self.revocations.send_modify(|count| *count += 1);
            }
        }
        self.cookie.remove(secure)
    }

    /// A login was used: it lives on. Returns the header that gives its cookie a new value when that is due.
    pub(in crate::serve) async fn renew(
        &self,
        client: &Client,
        headers: &HeaderMap,
        identity: &Identity,
    ) -> Option<HeaderValue> {
        let Proof::Login(found) = &identity.proof else {
            return None;
        };
        let secret = self.logins.renew(found).await?;
        Some(self.cookie.set(&secret, self.is_secure(client, headers)))
    }

    /// A login is in use by something that lasts, such as a link.
    pub(in crate::serve) async fn touch(&self, identity: &Identity) {
        if let Proof::Login(found) = &identity.proof {
            self.logins.touch(&found.id).await;
        }
    }
}
