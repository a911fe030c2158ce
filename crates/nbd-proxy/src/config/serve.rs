//! The section `serve`: how the built-in web server is reached, and by whom.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    access::Access,
    audit::{self, Destination},
    limits::{self, ServeLimits},
    reader::{Reader, Section},
    tls::{self, TlsFiles},
};

/// The section `serve`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServeConfig {
    /// Addresses to listen on; empty means the default.
    pub(crate) listen: Vec<SocketAddr>,
    /// Names beyond IP addresses and localhost under which the server is reached, without ports.
    pub(crate) hosts: Vec<String>,
    /// Foreign origins whose pages may connect.
    pub(crate) origins: Vec<String>,
    /// The certificate of the server's own TLS.
    pub(crate) tls: Option<TlsFiles>,
    /// Whether a proxy in front of the server speaks TLS, so that it may listen beyond loopback without.
    pub(crate) tls_terminated: bool,
    /// Where the server keeps what outlives it, if not at the usual place.
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the audit trail goes; None: to the journal where standard error goes there, too.
    pub(crate) audit: Option<Destination>,
    /// How much it takes on.
    pub(crate) limits: ServeLimits,
    /// Who people are.
    pub(crate) access: Access,
}

#[cfg(feature = "serve")]
/// Something in the section that its author may not have meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// What, and what comes of it.
    pub(crate) what: &'static str,
    /// What to do.
    pub(crate) remedy: &'static str,
}

impl ServeConfig {
    /// Whether people have a way to say who they are. If so, no token is put into an address.
    #[cfg(feature = "serve")]
    pub(crate) fn knows_people(&self) -> bool {
        let certificates = (self.tls.as_ref()).is_some_and(|files| files.client_ca.is_some());
        certificates || self.access.knows_people()
    }

    /// What is allowed, and hardly meant: each with its remedy.
    #[cfg(feature = "serve")]
    pub(crate) fn doubts(&self) -> Vec<Doubt> {
        let has_passwords = self.access.users.is_some();
        let one_for_all = self.tls_terminated && self.access.proxies.addresses.is_empty();
        (has_passwords && one_for_all)
            .then_some(Doubt {
                what: "\"tls-terminated\" says that a proxy is in front, and there is no \"trusted-proxies\": all people \
                       come from one address then, and a few wrong passwords of one of them slow everybody down",
                remedy: "say where the proxy is, as \"trusted-proxies\": {\"addresses\": [\"127.0.0.1\"]} in \"serve\", and let \
                         it send X-Forwarded-For",
            })
            .into_iter()
            .collect()
    }

    /// The files that the server reads while it runs; each may be replaced by a newer one of its name.
    pub(crate) fn files(&self) -> Vec<&Path> {
        let certificates = self.tls.iter().flat_map(TlsFiles::paths);
        let people = [&self.access.users, &self.access.tokens];
        certificates
            .chain(people.into_iter().flatten().map(PathBuf::as_path))
            .collect()
    }

    pub(super) fn read(reader: &mut Reader, value: &Value) -> Result<Self, String> {
        let mut section = reader.section("serve", value)?;
        let serve = Self {
            listen: read_listen(&mut section)?,
            hosts: section.texts("hosts")?,
            origins: section.texts("origins")?,
            tls: tls::read(&mut section)?,
            tls_terminated: section.boolean("tls-terminated")?.unwrap_or(false),
            state_dir: section.absolute_path("state-dir")?,
            audit: audit::read(&mut section)?,
            limits: limits::read(&mut section)?,
            access: Access::read(&mut section)?,
        };
        section.finish()?;
        Ok(serve)
    }
}

fn read_listen(section: &mut Section<'_, '_>) -> Result<Vec<SocketAddr>, String> {
    let texts = section.texts("listen")?;
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            section.about(
                "listen",
                &format!("{text:?} is not an address with a port, such as 127.0.0.1:8000"),
            )
        })
    };
    texts.iter().map(parse).collect()
}
