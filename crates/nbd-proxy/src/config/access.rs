//! Who people are, and what they may do: `users`, `tokens` and `trusted-proxies` of the server, and `allow` of a
//! configuration.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reader::Section;
use crate::report;

/// The user who holds the address that `serve` prints, or sits at the machine. May do everything.
pub(crate) const LOCAL: &str = "local";
/// In `allow`: everybody who has shown who they are.
const ANYBODY: &str = "*";
/// The longest name, bytes.
const NAME_LENGTH: usize = 128;

/// Whether somebody, or a token, may be called so: in a file of ours, in a certificate, or by a proxy in front of us.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= NAME_LENGTH
        && !name.chars().any(report::is_treacherous)
        && name.trim() == name
        && !name.starts_with('-')
        && name != ANYBODY;
    good.then_some(()).ok_or_else(|| {
        format!(
            "{name:?} is no name; one has 1 to {NAME_LENGTH} bytes, no space at its ends, no control characters, is not \"*\", \
             and doesn't begin with \"-\""
        )
    })
}

/// How people and programs show who they are, beside the token in the address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    /// People with passwords; `nbd-proxy passwd` writes the file.
    pub(crate) users: Option<PathBuf>,
    /// Programs; likewise.
    pub(crate) tokens: Option<PathBuf>,
    /// Proxies in front of us whose word about their clients counts.
    pub(crate) proxies: TrustedProxies,
}

/// Proxies in front of us.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies {
    /// Where they are.
    pub(crate) addresses: Vec<IpNet>,
    /// The header, in lower case, by which they say who their client is, if they do.
    pub(crate) user_header: Option<String>,
}

impl Access {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self, String> {
        Ok(Self {
            users: section.absolute_path("users")?,
            tokens: section.absolute_path("tokens")?,
            proxies: TrustedProxies::read(section)?,
        })
    }

    /// Whether people have a way here.
    pub(super) fn knows_people(&self) -> bool {
        self.users.is_some() || self.proxies.user_header.is_some()
    }
}

impl TrustedProxies {
    fn read(section: &mut Section<'_, '_>) -> Result<Self, String> {
        let Some(value) = section.take("trusted-proxies") else {
            return Ok(Self::default());
        };
        let mut members = section.subsection("trusted-proxies", value)?;
        let mut addresses = Vec::new();
        for text in members.texts("addresses")? {
            addresses.push(parse_network(&text).ok_or_else(|| {
                let example = "such as 127.0.0.1 or 10.0.0.0/8";
                members.about(
                    "addresses",
                    &format!("has {text:?}, which is no address or network {example}"),
                )
            })?);
        }
        if addresses.is_empty() {
            return Err(members.about("addresses", "is missing; it lists whose word counts"));
        }
        let user_header = members.text("user-header")?.map(str::to_ascii_lowercase);
        if let Some(name) = &user_header
            && !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            return Err(members.about("user-header", &format!("is {name:?}, no name of a header")));
        }
        members.finish()?;
        Ok(Self {
            addresses,
            user_header,
        })
    }

    /// Whether one of them is there.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// A network, or a single address.
fn parse_network(text: &str) -> Option<IpNet> {
    let network = text.parse().ok();
    network.or_else(|| {
        text.parse::<IpAddr>()
            .ok()
            .map(|one| one.to_canonical().into())
    })
}

/// What somebody may do with a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Right {
    /// Begin a session.
    Attach,
    /// Go on with a session of one's own.
    Resume,
    /// End anybody's session.
    Eject,
    /// See the configuration and its session. Whoever may do anything with it may see it.
    Look,
}

impl Right {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Attach, Self::Resume, Self::Eject, Self::Look];

    /// The key in `allow`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Resume => "resume",
            Self::Eject => "eject",
            Self::Look => "look",
        }
    }
}

/// `allow` of a configuration: by right, who has it. Nobody but `local`, unless told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allow([Vec<String>; 4]);

impl Allow {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Self, String> {
        match section.take("allow") {
            None => Ok(Self::default()),
            Some(Value::Array(_)) => {
                let everything = names(section, "allow")?;
                Ok(Self(Right::ALL.map(|_| everything.clone())))
            }
            Some(value @ Value::Object(_)) => {
                let mut members = section.subsection("allow", value)?;
                let mut allow = Self::default();
                for (right, who) in Right::ALL.into_iter().zip(&mut allow.0) {
                    *who = names(&mut members, right.as_str())?;
                }
                members.finish()?;
                Ok(allow)
            }
            Some(_) => Err(section.about(
                "allow",
                "is neither a list of users nor an object of \"attach\", \"resume\", \"eject\" and \"look\"",
            )),
        }
    }

    /// Whether this user may.
    pub(crate) fn permits(&self, user: &str, right: Right) -> bool {
        let holds = |held: Right| {
            self.0[held as usize]
                .iter()
                .any(|name| name == user || name == ANYBODY)
        };
        user == LOCAL || holds(right) || right == Right::Look && Right::ALL.into_iter().any(holds)
    }

    /// What this user may.
    pub(crate) fn rights(&self, user: &str) -> Vec<Right> {
        let mut rights = Right::ALL.to_vec();
        rights.retain(|right| self.permits(user, *right));
        rights
    }

    /// Whether nobody but `local` may do anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// The users who are named.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        (self.0.iter().flatten())
            .map(String::as_str)
            .filter(|name| *name != ANYBODY)
    }
}

fn names(section: &mut Section<'_, '_>, key: &'static str) -> Result<Vec<String>, String> {
    let names = section.texts(key)?;
    match (names.iter().filter(|name| *name != ANYBODY)).find_map(|name| check_name(name).err()) {
        Some(error) => Err(section.about(key, &format!("names nobody: {error}"))),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Strictness, reader::Reader};

    fn allow(value: &Value) -> Result<Allow, String> {
        let file = json!({ "allow": value });
        let mut reader = Reader::new(Strictness::Strict);
        let mut section = reader.section("", &file)?;
        Allow::read(&mut section)
    }

    fn proxies(value: &Value) -> Result<TrustedProxies, String> {
        let file = json!({ "trusted-proxies": value });
        let mut reader = Reader::new(Strictness::Strict);
        let mut section = reader.section("", &file)?;
        TrustedProxies::read(&mut section)
    }

    #[test]
    fn nobody_but_the_holder_of_the_address_may_do_what_is_not_allowed() {
        let none = Allow::default();
        for right in Right::ALL {
            assert!(none.permits(LOCAL, right));
            assert!(!none.permits("eva", right));
        }
    }

    #[test]
    fn a_list_gives_all_rights_and_an_object_the_named_ones() {
        let all = allow(&json!(["eva"])).unwrap();
        assert_eq!(all.rights("eva"), Right::ALL);
        assert_eq!(all.rights("max"), []);
        let some = allow(&json!({"attach": ["eva"], "resume": ["eva"], "look": ["*"]})).unwrap();
        assert_eq!(
            some.rights("eva"),
            [Right::Attach, Right::Resume, Right::Look]
        );
        assert_eq!(some.rights("max"), [Right::Look]);
        assert_eq!(some.users().collect::<Vec<_>>(), ["eva", "eva"]);
    }

    #[test]
    fn whoever_may_do_anything_may_look() {
        let some = allow(&json!({"eject": ["eva"]})).unwrap();
        assert_eq!(some.rights("eva"), [Right::Eject, Right::Look]);
    }

    #[test]
    fn what_is_no_right_or_no_name_is_named() {
        for (value, part) in [
            (json!("eva"), "neither a list"),
            (json!({"atach": ["eva"]}), "allow.atach"),
            (json!({"attach": "eva"}), "allow.attach"),
            (json!(["a "]), "\"a \""),
            (json!([""]), "names nobody"),
            (json!({"eject": ["-x"]}), "allow.eject"),
        ] {
            let error = allow(&value).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn proxies_are_trusted_where_they_are_listed() {
        let value = json!({"addresses": ["127.0.0.1", "10.0.0.0/8", "fd00::/8"], "user-header": "X-Remote-User"});
        let proxies = proxies(&value).unwrap();
        assert_eq!(proxies.user_header.as_deref(), Some("x-remote-user"));
        for (address, trusted) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("10.255.0.1", true),
            ("fd00::1", true),
            ("127.0.0.2", false),
            ("11.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(
                proxies.contains(address.parse().unwrap()),
                trusted,
                "{address}"
            );
        }
    }

    #[test]
    fn proxies_that_are_nowhere_or_everywhere_unclear_are_refused() {
        for (value, part) in [
            (
                json!({"user-header": "X-User"}),
                "trusted-proxies.addresses",
            ),
            (json!({"addresses": ["localhost"]}), "\"localhost\""),
            (json!({"addresses": ["10.0.0.0/33"]}), "10.0.0.0/33"),
            (
                json!({"addresses": ["10.0.0.1"], "user-header": "X User"}),
                "x user",
            ),
            (
                json!({"addresses": ["10.0.0.1"], "user-heder": "X"}),
                "user-heder",
            ),
            (json!(["10.0.0.1"]), "not an object"),
        ] {
            let error = proxies(&value).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
