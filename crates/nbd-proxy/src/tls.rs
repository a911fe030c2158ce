//! TLS of servers, on HTTP and on NBD: certificates from files or made here, and read anew when they change. Versions
//! 1.2 and 1.3, and the suites that rustls has: all of them with forward secrecy and authenticated encryption.

mod certificate;
mod error;
mod files;
mod handshakes;
mod self_signed;
mod server;

use std::{fmt, sync::Arc};

use ring::digest;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring as provider};

pub(crate) use certificate::common_name;
pub(crate) use error::TlsError;
pub(crate) use files::authorities;
pub(crate) use handshakes::Handshakes;
pub(crate) use self_signed::SelfSigned;
pub(crate) use server::{Clients, Server, Source};

/// What all our TLS is computed with.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// The SHA-256 digest of a certificate, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; digest::SHA256_OUTPUT_LEN]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub(crate) fn of(certificate: &[u8]) -> Self {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits, with colons between pairs or without.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u32> = match text.contains(':') {
            true if !text.split(':').all(|pair| pair.len() == 2) => return None,
            true => text.split(':').collect::<String>(),
            false => text.to_owned(),
        }
        .chars()
        .map(|digit| digit.to_digit(16))
        .collect::<Option<_>>()?;
        let (pairs, []) = digits.as_chunks::<2>() else {
            return None;
        };
        let bytes: Vec<u8> = pairs
            .iter()
            .map(|[high, low]| u8::try_from(high * 16 + low))
            .collect::<Result<_, _>>()
            .ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(formatter, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_shown_and_as_plain_digits() {
        let fingerprint = Fingerprint::of(b"abc");
        let shown = fingerprint.to_string();
        assert!(shown.starts_with("BA:78:16:BF:"), "{shown}");
        for text in [
            shown.clone(),
            shown.to_lowercase(),
            shown.replace(':', ""),
            shown.replace(':', "").to_lowercase(),
        ] {
            assert_eq!(Fingerprint::parse(&text), Some(fingerprint), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_fingerprint() {
        let shown = Fingerprint::of(b"abc").to_string();
        for text in [
            "",
            &shown[1..],
            &shown[3..],
            &format!("{shown}:00"),
            &shown.replacen("BA", "BG", 1),
            &shown.replacen("BA:", "B:A", 1),
            &shown.replacen("BA", "é", 1),
        ] {
            assert_eq!(Fingerprint::parse(text), None, "{text}");
        }
    }
}
