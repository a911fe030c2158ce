//! Certificates and keys in PEM files.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject as _},
    },
};

use super::{TlsError, certificate::Certificate};
use crate::report;

/// How long before its end we begin to warn of it.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// Of a file's mode: anybody may read it.
const OTHERS_READ: u32 = 0o004;

/// What tells a file from what it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    changed: (i64, i64),
    inode: u64,
    size: u64,
}

impl Stamp {
    /// None where there is no such file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            changed: (found.ctime(), found.ctime_nsec()),
            inode: found.ino(),
            size: found.len(),
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.into(),
        source,
    })
}

fn not_pem(path: &Path, error: &PemError) -> TlsError {
    TlsError::NotPem {
        path: path.into(),
        cause: error.to_string(),
    }
}

/// All certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match found.map_err(|error| not_pem(path, &error))? {
        none if none.is_empty() => Err(TlsError::NoCertificate { path: path.into() }),
        found => Ok(found),
    }
}

/// The private key of a file. Says so if others could take it.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path)?;
    warn_of_readers(path);
    if is_encrypted(&text) {
        return Err(TlsError::EncryptedKey { path: path.into() });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        PemError::NoItemsFound => TlsError::NoKey { path: path.into() },
        error => not_pem(path, &error),
    })
}

/// PKCS #8's (RFC 7468, section 11), and what OpenSSL wrote before (RFC 1421, section 4.6.1.1).
fn is_encrypted(text: &[u8]) -> bool {
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
}

fn warn_of_readers(path: &Path) {
    if fs::metadata(path).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0) {
        report::warning(format_args!(
            "everybody on this machine can read the key in {0}, and pass for this server; chmod 600 {0}",
            path.display()
        ));
    }
}

/// Says so if a certificate has expired, or soon will have.
pub(super) fn warn_of_expiry(path: &Path, certificate: &CertificateDer<'_>) {
    let Ok(certificate) = Certificate::parse(certificate) else {
        return;
    };
    let path = path.display();
    match certificate.left(SystemTime::now()) {
        Duration::ZERO => report::warning(format_args!(
            "the certificate in {path} has expired; browsers will warn of it until it is renewed"
        )),
        left if left < SOON => report::warning(format_args!(
            "the certificate in {path} expires in {} h",
            left.as_secs() / 3600
        )),
        _ => {}
    }
}

/// The authorities of a file.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store
            .add(certificate)
            .map_err(|error| TlsError::BadCertificate {
                path: PathBuf::from(path),
                cause: error.to_string(),
            })?;
    }
    Ok(store)
}
