//! The address of a distant nbd-proxy: what `serve` printed, or one of its links.

use anyhow::{Context as _, bail};
use hyper::{Uri, http::uri::Scheme};

use super::trust::Trust;

/// Where to share, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Whether TLS is spoken.
    pub(super) tls: bool,
    /// As for a `Host` header: with brackets and a port where they are needed.
    pub(super) authority: String,
    /// To connect to: without brackets.
    pub(super) host: String,
    /// To connect to.
    pub(super) port: u16,
    /// What a proxy in front has put before our paths: `` or `/lab/disks`.
    pub(super) prefix: String,
    /// Of the path `/nbd/NAME`, percent-encoded; None for the default one.
    pub(super) configuration: Option<String>,
    /// Who we are.
    pub(super) token: Option<String>,
    /// Whether we have asked for a cookie.
    pub(super) has_logged_in: bool,
    /// What we got for the token, `NAME=VALUE`: it is good when the server was started anew as well.
    pub(super) cookie: Option<String>,
    /// Who the server is, where TLS is spoken.
    pub(super) trust: Trust,
}

impl Address {
    /// Reads `http://HOST:PORT/#token=…`, or `ws(s)://HOST:PORT/nbd/NAME`. `token` is that of the command line.
    pub(super) fn parse(text: &str, token: Option<String>) -> anyhow::Result<Self> {
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        let uri: Uri = text
            .parse()
            .with_context(|| format!("{text:?} is not an address"))?;
        let tls = match uri.scheme().map(Scheme::as_str) {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => bail!(
                "{text:?} begins with none of http://, https://, ws://, wss://; give the address that serve printed"
            ),
        };
        let authority = uri
            .authority()
            .with_context(|| format!("{text:?} names no host"))?;
        if authority.as_str().contains('@') {
            bail!("an address with a user name is not understood; give the token with --token");
        }
        if uri.query().is_some() {
            bail!(
                "the address has a query, {:?}; leave it out",
                uri.query().unwrap_or_default()
            );
        }
        let in_fragment = fragment
            .split('&')
            .find_map(|pair| pair.strip_prefix("token="))
            .filter(|token| !token.is_empty());
        let (prefix, configuration) = split_path(uri.path())?;
        let host = authority.host();
        Ok(Self {
            tls,
            authority: authority.as_str().to_owned(),
            host: host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .unwrap_or(host)
                .to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            prefix,
            configuration,
            token: token.or_else(|| in_fragment.map(str::to_owned)),
            has_logged_in: false,
            cookie: None,
            trust: Trust::default(),
        })
    }

    /// Forgets the cookie, so that the token is traded for another. False where there is no token, or no cookie.
    pub(super) fn forget_cookie(&mut self) -> bool {
        let can_get_another = self.token.is_some() && self.cookie.take().is_some();
        self.has_logged_in &= !can_get_another;
        can_get_another
    }

    /// The address of the link to a configuration, percent-encoded, with a session's ID. `takeover`: whether it is to
    /// take over from one that lives.
    pub(super) fn link(&self, configuration: &str, session: &str, takeover: bool) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        let takeover = if takeover { "&takeover=1" } else { "" };
        format!(
            "{scheme}://{}{}/nbd/{configuration}?session={session}&v=1{takeover}",
            self.authority, self.prefix
        )
    }
}

fn split_path(path: &str) -> anyhow::Result<(String, Option<String>)> {
    let path = path.trim_end_matches('/');
    match path.rsplit_once("/nbd/") {
        Some((_, name)) if name.contains('/') => bail!("{path:?} does not end in /nbd/NAME"),
        Some((prefix, name)) => Ok((prefix.to_owned(), Some(name.to_owned()))),
        None if path.ends_with("/vm/0/0") => {
            bail!("the links at /vm/0/0 are for older programs; use /nbd/NAME")
        }
        None => Ok((path.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_address_has_it_all() {
        let address = Address::parse("http://127.0.0.1:8000/#token=abc", None).unwrap();
        assert_eq!(
            (address.tls, address.host.as_str(), address.port),
            (false, "127.0.0.1", 8000)
        );
        assert_eq!(
            (address.prefix.as_str(), address.configuration.clone()),
            ("", None)
        );
        assert_eq!(address.token.as_deref(), Some("abc"));
        assert_eq!(
            address.link("a%20b", "id", true),
            "ws://127.0.0.1:8000/nbd/a%20b?session=id&v=1&takeover=1"
        );
    }

    #[test]
    fn a_link_names_its_configuration_and_may_stand_behind_a_proxy() {
        let address = Address::parse("wss://[::1]/lab/disks/nbd/0", Some("t".to_owned())).unwrap();
        assert_eq!(
            (address.tls, address.host.as_str(), address.port),
            (true, "::1", 443)
        );
        assert_eq!(
            (address.prefix.as_str(), address.configuration.as_deref()),
            ("/lab/disks", Some("0"))
        );
        assert_eq!(
            address.link("0", "id", false),
            "wss://[::1]/lab/disks/nbd/0?session=id&v=1"
        );
    }

    #[test]
    fn the_command_line_token_comes_first() {
        let address =
            Address::parse("http://localhost/#token=abc", Some("def".to_owned())).unwrap();
        assert_eq!(address.token.as_deref(), Some("def"));
    }

    #[test]
    fn other_addresses_are_refused_in_words() {
        for (text, word) in [
            ("ftp://x/", "begins with"),
            ("localhost:8000", "begins with"),
            ("/nbd/0", "begins with"),
            ("http://user@x/", "--token"),
            ("ws://x/nbd/0?v=1", "query"),
            ("ws://x/nbd/0/1", "/nbd/NAME"),
            ("ws://x/vm/0/0", "/nbd/NAME"),
        ] {
            let error = Address::parse(text, None).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
