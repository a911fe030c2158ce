//! Users and tokens: two files that `nbd-proxy passwd` writes and the server reads.

pub(crate) mod password;
mod tokens;
mod users;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::check_name, private_file};
pub(crate) use tokens::{Token, Tokens};
pub(crate) use users::{User, Users};

/// Of both files' form.
const VERSION: u32 = 1;

/// What can be read from a file of accounts, and written to it.
pub(crate) trait Accounts: Default + Serialize + DeserializeOwned {
    /// What is wrong with one of them, or none.
    fn check(&self) -> anyhow::Result<()>;

    /// Reads a file; None where there is none.
    fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(content) = private_file::read(path)? else {
            return Ok(None);
        };
        let parse = || -> anyhow::Result<Self> {
            let file: Versioned<Self> = serde_json::from_slice(&content)?;
            ensure!(
                file.version == VERSION,
                "its version is {}, and this program knows {VERSION}",
                file.version
            );
            file.accounts.check()?;
            Ok(file.accounts)
        };
        parse()
            .map(Some)
            .with_context(|| format!("{} can't be used", path.display()))
    }

    /// Writes a file.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut content = serde_json::to_vec_pretty(&Versioned {
            version: VERSION,
            accounts: self,
        })?;
        content.push(b'\n');
        Ok(private_file::write(path, &content)?)
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    accounts: T,
}

/// Checks each name of a file.
fn check_names<T>(accounts: &BTreeMap<String, T>) -> anyhow::Result<()> {
    accounts
        .keys()
        .try_for_each(|name| check_name(name).map_err(anyhow::Error::msg))
}

/// Seconds since 1970: what is written to files outlives the machine's other clocks.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
