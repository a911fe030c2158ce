//! People who sign in with a password.

use std::collections::BTreeMap;

use anyhow::{Context as _, Error, ensure};
use serde::{Deserialize, Serialize};

use super::{Accounts, check_names, password};
use crate::{
    config::{LOCAL, check_name},
    secret::Digest,
};

/// The file `users`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Users {
    users: BTreeMap<String, User>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    /// Argon2id of the password, as a PHC string.
    password: String,
    /// When it was set, seconds since 1970.
    pub(crate) changed: u64,
}

impl User {
    pub(crate) fn new(password: String, changed: u64) -> Self {
        Self { password, changed }
    }

    /// To check a password by.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    /// Changes with the password: whoever signed in with the old one has not signed in with this one.
    pub(crate) fn print(&self) -> Digest {
        Digest::of(&self.password)
    }
}

impl Users {
    pub(crate) fn get(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// Adds one, or gives them another password; returns whether they were there before.
    pub(crate) fn set(&mut self, name: &str, user: User) -> anyhow::Result<bool> {
        check_name(name).map_err(Error::msg)?;
        ensure!(name != LOCAL, "{RESERVED}");
        Ok(self.users.insert(name.to_owned(), user).is_some())
    }

    /// Returns whether they were there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.users.remove(name).is_some()
    }
}

const RESERVED: &str = "\"local\" is who holds the address that serve prints, and has no password; choose another name";

impl Accounts for Users {
    fn check(&self) -> anyhow::Result<()> {
        check_names(&self.users)?;
        ensure!(!self.users.contains_key(LOCAL), "{RESERVED}");
        for (name, user) in &self.users {
            password::check_hash(&user.password)
                .with_context(|| format!("the password of {name:?} is no Argon2 hash"))?;
        }
        Ok(())
    }
}
