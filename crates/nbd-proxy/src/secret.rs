//! Secrets, and what is kept of them.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use subtle::ConstantTimeEq as _;

/// A secret of ours: random bits in hexadecimal, so that it fits an address, a cookie, and a WebSocket subprotocol
/// alike.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// A new one of 160 bits, from the kernel's random source.
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(random_hex::<20>()?))
    }

    /// A new one of 256 bits for a program, which may keep it for years. It begins so that tools which look for
    /// published secrets can know it.
    pub(crate) fn for_program() -> Result<Self, getrandom::Error> {
        Ok(Self(format!("nbdproxy_{}", random_hex::<32>()?)))
    }

    /// For those who are to have it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// What we keep to know it again.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// The SHA-256 of a secret. Nobody finds a secret of so many random bits by trying, so it needs no slow hash as a
/// password does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Of what somebody presents as a secret.
    pub(crate) fn of(text: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(bytes)
    }
}

/// Takes as long wherever the two differ.
impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom("a SHA-256 in base64 (RFC 4648, section 5) is needed"))
    }
}

/// `BYTES` random bytes from the kernel, in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed_by_accident() {
        let secret = Secret::generate().unwrap();
        assert_eq!(secret.reveal().len(), 40);
        assert!(!format!("{secret:?}").contains(secret.reveal()));
    }

    #[test]
    fn what_is_kept_knows_its_secret_again_and_no_other() {
        let secret = Secret::generate().unwrap();
        let kept = serde_json::to_string(&secret.digest()).unwrap();
        assert!(!kept.contains(secret.reveal()));
        let digest: Digest = serde_json::from_str(&kept).unwrap();
        assert_eq!(digest, Digest::of(secret.reveal()));
        assert_ne!(digest, Digest::of(&secret.reveal()[1..]));
        assert!(serde_json::from_str::<Digest>("\"short\"").is_err());
    }
}
