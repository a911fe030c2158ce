//! What can be wrong with certificates and keys, and what helps.

use std::{io, path::PathBuf};

use tokio_rustls::rustls;

/// Why there is no TLS with what we were given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read.
    #[error("can't read {}: {source}; \"tls\" and --ca name PEM files that this user can read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is broken PEM.
    #[error("{}: not PEM: {cause}", path.display())]
    NotPem {
        /// Which.
        path: PathBuf,
        /// Where and why.
        cause: String,
    },
    /// The chain is empty.
    #[error(
        "{} has no certificate; it takes blocks -----BEGIN CERTIFICATE-----, of a server its own first", path.display()
    )]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate cannot be used.
    #[error("{}: not a certificate that can be used: {cause}", path.display())]
    BadCertificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// There is no key.
    #[error("{} has no private key; it takes a block -----BEGIN PRIVATE KEY-----", path.display())]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
    /// The key is encrypted.
    #[error(
        "the key in {0} is encrypted, and nobody is here to type its passphrase; give a copy that is not, readable by \
         this user alone: openssl pkey -in {0} -out KEY", path.display()
    )]
    EncryptedKey {
        /// Which file.
        path: PathBuf,
    },
    /// The key is of a kind that is not understood.
    #[error("the key in {} can't be used ({cause}); RSA of at least 2048 bits, ECDSA and Ed25519 can", path.display())]
    BadKey {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: rustls::Error,
    },
    /// The key is another certificate's.
    #[error(
        "the key in {} does not belong to the first certificate in {}; give the key that the certificate was made for, \
         and the server's certificate before those of authorities", key.display(), certificate.display()
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// A certificate of our own cannot be made or kept.
    #[error(
        "can't {what}: {cause}; give a certificate with \"tls\" in \"serve\", or another \"state-dir\""
    )]
    NotMade {
        /// What failed.
        what: String,
        /// Why.
        cause: String,
    },
    /// rustls has no use for what is right by itself.
    #[error("TLS can't be set up: {0}")]
    Setup(#[from] rustls::Error),
}
