//! What stands in a certificate and is of use to us beyond what rustls checks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_cert::{
    attr::AttributeTypeAndValue,
    der::{Decode as _, Tag, Tagged as _, oid::db::rfc4519},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// The longest name of a person, in characters (RFC 5280, appendix A: `ub-common-name`).
const NAME_LENGTH: usize = 64;

/// A certificate, taken apart.
pub(super) struct Certificate(x509_cert::Certificate);

impl Certificate {
    pub(super) fn parse(der: &[u8]) -> Result<Self, x509_cert::der::Error> {
        x509_cert::Certificate::from_der(der).map(Self)
    }

    /// Until when it is valid.
    pub(super) fn not_after(&self) -> SystemTime {
        UNIX_EPOCH
            .checked_add(self.0.tbs_certificate.validity.not_after.to_unix_duration())
            .unwrap_or(UNIX_EPOCH)
    }

    /// How long it is valid from `now` on; zero when it has expired.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        self.not_after().duration_since(now).unwrap_or_default()
    }

    /// The names and addresses that it is for, in text; others are left out.
    pub(super) fn subject_names(&self) -> Vec<String> {
        let Ok(Some((_, SubjectAltName(names)))) = self.0.tbs_certificate.get() else {
            return Vec::new();
        };
        names.iter().filter_map(written).collect()
    }

    /// The one common name of its subject (RFC 4519, section 2.3): one that can be shown, and is not ambiguous.
    fn common_name(&self) -> Option<String> {
        let attributes = || {
            let names = self.0.tbs_certificate.subject.0.iter();
            names.flat_map(|relative| relative.0.iter())
        };
        let mut common = attributes().filter(|attribute| attribute.oid == rfc4519::CN);
        let (Some(sole), None) = (common.next(), common.next()) else {
            return None;
        };
        text(sole).filter(|name| {
            !name.trim().is_empty()
                && name.chars().count() <= NAME_LENGTH
                && !name.chars().any(char::is_control)
        })
    }
}

fn written(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn text(attribute: &AttributeTypeAndValue) -> Option<String> {
    match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            String::from_utf8(attribute.value.value().to_vec()).ok()
        }
        _ => None,
    }
}

/// The name of whom a certificate was issued to.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    Certificate::parse(certificate).ok()?.common_name()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn issue(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params =
            CertificateParams::new(vec!["a.example".to_owned(), "::1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        certificate.der().to_vec()
    }

    #[test]
    fn the_name_is_the_subjects_common_name() {
        let named = issue(&[
            (DnType::OrganizationName, "Example"),
            (DnType::CommonName, "Zoë of the lab"),
        ]);
        assert_eq!(common_name(&named).as_deref(), Some("Zoë of the lab"));
    }

    #[test]
    fn a_certificate_without_a_name_that_can_be_shown_names_nobody() {
        assert_eq!(
            common_name(&issue(&[(DnType::OrganizationName, "Example")])),
            None
        );
        for name in ["", "  ", "a\nb", "a\0", &"x".repeat(65)] {
            assert_eq!(
                common_name(&issue(&[(DnType::CommonName, name)])),
                None,
                "{name:?}"
            );
        }
        assert_eq!(common_name(b"not a certificate"), None);
    }

    #[test]
    fn two_common_names_name_nobody() {
        // By hand, since rcgen keeps the last one: what openssl makes of -subj /CN=alice/CN=local.
        let once = issue(&[
            (DnType::CommonName, "alice"),
            (DnType::OrganizationName, "local"),
        ]);
        let organization = [6, 3, 0x55, 4, 10];
        let mut twice = once.clone();
        for at in 0..twice.len() - organization.len() {
            if twice[at..].starts_with(&organization) {
                twice[at + 4] = 3;
            }
        }
        assert_ne!(once, twice);
        assert_eq!(common_name(&once).as_deref(), Some("alice"));
        assert_eq!(common_name(&twice), None);
    }

    #[test]
    fn names_and_addresses_are_written_as_people_do() {
        let certificate = Certificate::parse(&issue(&[])).unwrap();
        assert_eq!(certificate.subject_names(), ["a.example", "::1"]);
        assert!(certificate.left(SystemTime::now()) > Duration::ZERO);
    }
}
