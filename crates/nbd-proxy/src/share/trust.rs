//! Whom to believe that they are the server.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

use crate::tls::{self, Fingerprint};

/// Which certificates count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Trust {
    /// Those of whom this machine trusts; `SSL_CERT_FILE` names others.
    #[default]
    Machine,
    /// Those of the authorities in a PEM file.
    Authorities(PathBuf),
    /// This one, whatever stands in it.
    Certificate(Fingerprint),
}

impl Trust {
    /// TLS with such a server, and what was seen of it.
    pub(super) fn config(&self) -> anyhow::Result<(ClientConfig, Arc<Verifier>)> {
        let rule = match self {
            Self::Machine => Rule::authorities(machine()?)?,
            Self::Authorities(path) => Rule::authorities(tls::authorities(path)?)?,
            Self::Certificate(fingerprint) => Rule::Certificate(*fingerprint),
        };
        let verifier = Arc::new(Verifier {
            rule,
            crypto: tls::crypto(),
            refused: Mutex::default(),
        });
        let config = ClientConfig::builder_with_provider(tls::crypto())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier))
            .with_no_client_auth();
        Ok((config, verifier))
    }
}

fn machine() -> anyhow::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        bail!(
            "this machine trusts no certificate authority; install ca-certificates, or name the server's with --ca or \
             its certificate with --fingerprint"
        );
    }
    Ok(roots)
}

#[derive(Debug)]
enum Rule {
    Authorities(Arc<WebPkiServerVerifier>),
    Certificate(Fingerprint),
}

impl Rule {
    fn authorities(roots: RootCertStore) -> anyhow::Result<Self> {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::crypto())
            .build()
            .map(Self::Authorities)
            .context("these authorities can't be used")
    }
}

/// Judges a server's certificate, and remembers one that it refused.
#[derive(Debug)]
pub(super) struct Verifier {
    rule: Rule,
    crypto: Arc<CryptoProvider>,
    refused: Mutex<Option<Refused>>,
}

#[derive(Debug, Clone)]
struct Refused {
    fingerprint: Fingerprint,
    cause: Error,
}

impl Verifier {
    /// A sentence about the certificate that was refused, with the remedies.
    pub(super) fn refusal(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Refused { fingerprint, cause } = refused.clone()?;
        Some(match self.rule {
            Rule::Certificate(expected) => format!(
                "its certificate has the SHA-256 fingerprint {fingerprint}, not {expected}; either it was renewed, then \
                 ask whoever runs the server for the new one, or somebody else answers in its place"
            ),
            Rule::Authorities(_) => format!(
                "its certificate can't be trusted ({cause}); name its authority with --ca FILE or, if the server shows \
                 this same SHA-256 fingerprint when it starts, say --fingerprint {fingerprint}"
            ),
        })
    }

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.rule {
            Rule::Authorities(verifier) => {
                verifier.verify_server_cert(certificate, intermediates, name, stapled, now)
            }
            Rule::Certificate(expected) if Fingerprint::of(certificate) == *expected => {
                Ok(ServerCertVerified::assertion())
            }
            Rule::Certificate(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.judge(certificate, intermediates, name, stapled, now);
        let refused = judged.as_ref().err().map(|cause| Refused {
            fingerprint: Fingerprint::of(certificate),
            cause: cause.clone(),
        });
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto
            .signature_verification_algorithms
            .supported_schemes()
    }
}
