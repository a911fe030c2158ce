//! The server's side: a certificate, what is asked of clients, and both read anew when they change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::rustls::{
    self, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use super::{
    Fingerprint, SelfSigned, TlsError,
    certificate::Certificate,
    crypto,
    files::{self, Stamp},
};
use crate::report;

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a renewal that failed is left alone.
const RETRY: Duration = Duration::from_secs(3600);

/// Where a certificate comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// From somebody else.
    Files {
        /// PEM: the server's own first.
        certificate: PathBuf,
        /// PEM: its key.
        key: PathBuf,
    },
    /// We make it.
    SelfSigned(SelfSigned),
}

impl Source {
    fn paths(&self) -> (&Path, &Path) {
        match self {
            Self::Files { certificate, key } => (certificate, key),
            Self::SelfSigned(made) => (&made.certificate, &made.key),
        }
    }
}

/// Which certificates clients are asked for.
#[derive(Debug)]
pub(crate) enum Clients {
    /// None.
    Anonymous,
    /// One of these authorities (a PEM file), from those who have one.
    MayShow(PathBuf),
    /// One of these authorities, from everybody.
    MustShow(PathBuf),
}

impl Clients {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Anonymous => None,
            Self::MayShow(path) | Self::MustShow(path) => Some(path),
        }
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let Some(path) = self.path() else {
            return Ok(WebPkiClientVerifier::no_client_auth());
        };
        let roots = Arc::new(files::authorities(path)?);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, crypto());
        let builder = match self {
            Self::MayShow(_) => builder.allow_unauthenticated(),
            _ => builder,
        };
        builder.build().map_err(|error| TlsError::BadCertificate {
            path: path.into(),
            cause: error.to_string(),
        })
    }
}

/// The TLS of one server: what was read last.
#[derive(Debug)]
pub(crate) struct Server(watch::Receiver<Loaded>);

#[derive(Debug, Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    fingerprint: Fingerprint,
    /// When the certificate is to be renewed, if that is for us to do.
    due: Option<SystemTime>,
}

impl Server {
    /// Reads what there is, or makes it, and goes on looking at it. `protocol` is what is spoken inside (ALPN,
    /// RFC 7301).
    pub(crate) async fn start(
        source: Source,
        clients: Clients,
        protocol: Option<&'static [u8]>,
    ) -> Result<Self, TlsError> {
        let read = spawn_blocking(move || Reader::new(source, clients, protocol)).await;
        let (reader, loaded) = read.map_err(|cause| TlsError::NotMade {
            what: "read a certificate".into(),
            cause: cause.to_string(),
        })??;
        let (sender, receiver) = watch::channel(loaded);
        tokio::spawn(follow(reader, sender));
        Ok(Self(receiver))
    }

    /// Whether that would do. Blocks.
    pub(crate) fn check(source: Source, clients: Clients) -> Result<(), TlsError> {
        Reader::new(source, clients, None).map(drop)
    }

    /// Of the certificate that is shown now.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.0.borrow().fingerprint
    }

    /// For the next connection, at once. Connections that are open go on with what they began with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.borrow().config)
    }
}

/// Looks at the files for as long as anybody wants to know. A disk that takes its time keeps no connection waiting.
async fn follow(mut reader: Reader, sender: watch::Sender<Loaded>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sender.is_closed() {
        period.tick().await;
        let looked = spawn_blocking(move || {
            let fresh = reader.look();
            (reader, fresh)
        });
        let Ok((back, fresh)) = looked.await else {
            return;
        };
        reader = back;
        if let Some(loaded) = fresh {
            sender.send_replace(loaded);
        }
    }
}

/// Reads the files when they have changed. All of it blocks.
#[derive(Debug)]
struct Reader {
    source: Source,
    clients: Clients,
    protocol: Option<&'static [u8]>,
    /// What the files were like when they were read last.
    stamps: Stamps,
    due: Option<SystemTime>,
}

type Stamps = [Option<Stamp>; 3];

impl Reader {
    fn new(
        source: Source,
        clients: Clients,
        protocol: Option<&'static [u8]>,
    ) -> Result<(Self, Loaded), TlsError> {
        prepare(&source)?;
        let stamps = stamps(&source, &clients);
        let loaded = load(&source, &clients, protocol)?;
        let reader = Self {
            source,
            clients,
            protocol,
            stamps,
            due: loaded.due,
        };
        Ok((reader, loaded))
    }

    /// What there is to be used from now on, if that is something else. What can't be used leaves everything as it was.
    fn look(&mut self) -> Option<Loaded> {
        let now = SystemTime::now();
        let due = self.due.is_some_and(|due| now >= due);
        if !due && stamps(&self.source, &self.clients) == self.stamps {
            return None;
        }
        let prepared = prepare(&self.source);
        // As they are before they are read: what changes meanwhile is found the next time.
        self.stamps = stamps(&self.source, &self.clients);
        match prepared.and_then(|()| load(&self.source, &self.clients, self.protocol)) {
            Ok(loaded) => {
                report::information(format_args!(
                    "the certificate was read anew; its SHA-256 fingerprint is {}",
                    loaded.fingerprint
                ));
                self.due = loaded.due;
                Some(loaded)
            }
            Err(error) => {
                self.due = self.due.map(|_| now + RETRY);
                report::error(format_args!(
                    "the new certificate can't be used, the old one stays: {error}"
                ));
                None
            }
        }
    }
}

/// Sees to it that there are files.
fn prepare(source: &Source) -> Result<(), TlsError> {
    match source {
        Source::SelfSigned(made) => made.provide(SystemTime::now()).map(drop),
        Source::Files { .. } => Ok(()),
    }
}

fn stamps(source: &Source, clients: &Clients) -> Stamps {
    let (certificate, key) = source.paths();
    [Some(certificate), Some(key), clients.path()].map(|path| path.and_then(Stamp::of))
}

fn load(
    source: &Source,
    clients: &Clients,
    protocol: Option<&'static [u8]>,
) -> Result<Loaded, TlsError> {
    let (certificate_path, key_path) = source.paths();
    let chain = files::certificates(certificate_path)?;
    let key = files::key(key_path)?;
    files::warn_of_expiry(certificate_path, &chain[0]);
    let due = match source {
        Source::SelfSigned(_) => Certificate::parse(&chain[0])
            .ok()
            .map(|certificate| SelfSigned::due(&certificate)),
        Source::Files { .. } => None,
    };
    let fingerprint = Fingerprint::of(&chain[0]);
    let mut config = configure(chain, key, clients.verifier()?)?
        .map_err(|error| unfit(certificate_path, key_path, error))?;
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    Ok(Loaded {
        config: Arc::new(config),
        fingerprint,
        due,
    })
}

/// The inner error is about certificate and key.
fn configure(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Result<ServerConfig, rustls::Error>, TlsError> {
    Ok(ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key))
}

fn unfit(certificate: &Path, key: &Path, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            certificate: certificate.into(),
            key: key.into(),
        },
        rustls::Error::InvalidCertificate(cause) => TlsError::BadCertificate {
            path: certificate.into(),
            cause: rustls::Error::InvalidCertificate(cause).to_string(),
        },
        cause => TlsError::BadKey {
            path: key.into(),
            cause,
        },
    }
}

/// Whether the two files can be used together.
pub(super) fn fit(certificate: &Path, key: &Path) -> bool {
    let (Ok(chain), Ok(key)) = (files::certificates(certificate), files::key(key)) else {
        return false;
    };
    matches!(
        configure(chain, key, WebPkiClientVerifier::no_client_auth()),
        Ok(Ok(_))
    )
}
