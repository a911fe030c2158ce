//! Tokens, by which programs say who sent them.

use std::collections::BTreeMap;

use anyhow::{Error, ensure};
use serde::{Deserialize, Serialize};

use super::{Accounts, check_names};
use crate::{config::check_name, secret::Digest};

/// The file `tokens`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Tokens {
    tokens: BTreeMap<String, Token>,
}

/// One of them. Nothing of the token itself is kept, not even its last characters.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    /// Who its holder is.
    pub(crate) user: String,
    /// Of 256 random bits: nobody finds them by trying, so a fast hash is as good as a slow one.
    pub(crate) sha256: Digest,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Seconds since 1970; None: it lasts until it is revoked.
    pub(crate) expires: Option<u64>,
}

impl Token {
    /// Whether its time is over.
    pub(crate) fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

impl Tokens {
    /// The one that somebody presents, by its name.
    pub(crate) fn find(&self, digest: Digest) -> Option<(&str, &Token)> {
        self.iter().find(|(_, token)| token.sha256 == digest)
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Token)> {
        self.tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token))
    }

    /// Adds one under a name that is free.
    pub(crate) fn add(&mut self, name: &str, token: Token) -> anyhow::Result<()> {
        check_name(name).map_err(Error::msg)?;
        check_name(&token.user).map_err(Error::msg)?;
        ensure!(
            !self.tokens.contains_key(name),
            "there is a token {name:?} already; revoke it first, or choose another name"
        );
        self.tokens.insert(name.to_owned(), token);
        Ok(())
    }

    /// Returns whether it was there.
    pub(crate) fn revoke(&mut self, name: &str) -> bool {
        self.tokens.remove(name).is_some()
    }

    /// Revokes all of one user, and returns their names.
    pub(crate) fn revoke_all_of(&mut self, user: &str) -> Vec<String> {
        let names: Vec<String> = (self.iter())
            .filter(|(_, token)| token.user == user)
            .map(|(name, _)| name.to_owned())
            .collect();
        self.tokens.retain(|_, token| token.user != user);
        names
    }
}

impl Accounts for Tokens {
    fn check(&self) -> anyhow::Result<()> {
        check_names(&self.tokens)?;
        self.tokens
            .values()
            .try_for_each(|token| check_name(&token.user).map_err(Error::msg))
    }
}
