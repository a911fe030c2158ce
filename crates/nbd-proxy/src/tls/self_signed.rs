//! A certificate of our own making, kept, so that who has seen its fingerprint once knows us again.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use x509_cert::der::pem::{LineEnding, encode_string};

use super::{TlsError, certificate::Certificate, files};
use crate::secret::random_hex;

/// How long it is valid. Apple's systems take none that is valid for more than 825 days.
const VALID: Duration = Duration::from_secs(820 * 24 * 3600);
/// How long before its end it is renewed.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long before now it begins, for clocks that are late.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// The most characters of the machine's name in a subject, which has 64 at most (RFC 5280, `ub-common-name`).
const HOST_LENGTH: usize = 40;

/// Where such a certificate is kept, and what for.
#[derive(Debug)]
pub(crate) struct SelfSigned {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    names: BTreeSet<String>,
}

impl SelfSigned {
    /// In `directory`, for localhost, `addresses` (an unspecified one is left out), and `hosts`.
    pub(crate) fn new(
        directory: &Path,
        addresses: impl IntoIterator<Item = IpAddr>,
        hosts: &[String],
    ) -> Self {
        let addresses = addresses
            .into_iter()
            .map(|address| address.to_canonical())
            .filter(|address| !address.is_unspecified())
            .map(|address| address.to_string());
        let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let hosts = hosts
            .iter()
            .map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase());
        Self {
            certificate: directory.join("self-signed.crt"),
            key: directory.join("self-signed.key"),
            names: own.into_iter().chain(addresses).chain(hosts).collect(),
        }
    }

    /// Sees to it that there is one for these names, valid for a while. Returns whether it was made now.
    pub(super) fn provide(&self, now: SystemTime) -> Result<bool, TlsError> {
        if self.is_good(now) {
            return Ok(false);
        }
        self.make(now).map(|()| true)
    }

    /// When the certificate is due for renewal.
    pub(super) fn due(certificate: &Certificate) -> SystemTime {
        certificate
            .not_after()
            .checked_sub(RENEWED_BEFORE)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn is_good(&self, now: SystemTime) -> bool {
        let Ok(chain) = files::certificates(&self.certificate) else {
            return false;
        };
        let Ok(certificate) = Certificate::parse(&chain[0]) else {
            return false;
        };
        let names: BTreeSet<_> = certificate.subject_names().into_iter().collect();
        names == self.names
            && now < Self::due(&certificate)
            && super::server::fit(&self.certificate, &self.key)
    }

    fn make(&self, now: SystemTime) -> Result<(), TlsError> {
        let failed = |cause: rcgen::Error| TlsError::NotMade {
            what: "make a certificate".into(),
            cause: cause.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let number = random_hex::<4>().map_err(|error| TlsError::NotMade {
            what: "make a certificate".into(),
            cause: error.to_string(),
        })?;
        let certificate = self
            .parameters(now, &number)
            .and_then(|parameters| parameters.self_signed(&key))
            .map_err(failed)?;
        write(&self.key, 0o600, "PRIVATE KEY", key.serialized_der())?;
        write(&self.certificate, 0o644, "CERTIFICATE", certificate.der())
    }

    fn parameters(&self, now: SystemTime, number: &str) -> Result<CertificateParams, rcgen::Error> {
        let mut parameters =
            CertificateParams::new(self.names.iter().cloned().collect::<Vec<_>>())?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters
            .distinguished_name
            .push(DnType::CommonName, subject(number));
        parameters.not_before = (now - SLACK).into();
        parameters.not_after = (now + VALID - SLACK).into();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(parameters)
    }
}

/// Of a certificate: no other machine's has the same, nor a later one of this machine. Programs that look up a
/// self-signed certificate among several find it by its subject, and give up where they find another key.
fn subject(number: &str) -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let host: String = name.chars().take(HOST_LENGTH).map(nbd::printable).collect();
    format!("{host} nbd-proxy {number}")
}

/// Writes a file that appears whole.
fn write(path: &Path, mode: u32, label: &str, der: &[u8]) -> Result<(), TlsError> {
    let failed = |cause: String| TlsError::NotMade {
        what: format!("write {}", path.display()),
        cause,
    };
    let text =
        encode_string(label, LineEnding::LF, der).map_err(|error| failed(error.to_string()))?;
    place(path, mode, text.as_bytes()).map_err(|error| failed(error.to_string()))
}

fn place(path: &Path, mode: u32, text: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    // Of a process that died in between, and had our number.
    let _ = fs::remove_file(&part);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| {
            file.write_all(text)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(directory: &Path, hosts: &[&str]) -> SelfSigned {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let addresses = ["0.0.0.0", "192.0.2.7", "::ffff:192.0.2.8"].map(|ip| ip.parse().unwrap());
        SelfSigned::new(directory, addresses, &hosts)
    }

    #[test]
    fn it_is_for_localhost_the_addresses_and_the_hosts_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let made = at(folder.path(), &["Disk.example", "[2001:db8::1]"]);
        let now = SystemTime::now();
        assert!(made.provide(now).unwrap());
        let chain = files::certificates(&made.certificate).unwrap();
        let certificate = Certificate::parse(&chain[0]).unwrap();
        assert_eq!(
            certificate.subject_names(),
            [
                "127.0.0.1",
                "192.0.2.7",
                "192.0.2.8",
                "2001:db8::1",
                "::1",
                "disk.example",
                "localhost"
            ]
        );
        assert!(certificate.left(now) <= Duration::from_secs(825 * 24 * 3600));
        let mode = fs::metadata(&made.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            2,
            "no parts are left"
        );
    }

    #[test]
    fn two_machines_have_different_subjects() {
        let subject = || {
            let folder = tempfile::tempdir().unwrap();
            let made = at(folder.path(), &[]);
            made.provide(SystemTime::now()).unwrap();
            let chain = files::certificates(&made.certificate).unwrap();
            super::super::common_name(&chain[0]).unwrap()
        };
        let (one, other) = (subject(), subject());
        assert_ne!(one, other);
        assert!(one.contains(" nbd-proxy "), "{one}");
    }

    #[test]
    fn it_is_kept_until_its_last_month() {
        let folder = tempfile::tempdir().unwrap();
        let made = at(folder.path(), &["disk.example"]);
        let now = SystemTime::now();
        assert!(made.provide(now).unwrap());
        let days = |days: u64| now + Duration::from_secs(days * 24 * 3600);
        assert!(
            !at(folder.path(), &["disk.example"])
                .provide(days(780))
                .unwrap()
        );
        assert!(
            at(folder.path(), &["disk.example"])
                .provide(days(795))
                .unwrap()
        );
    }

    #[test]
    fn it_is_made_anew_for_other_names_and_where_its_files_are_broken() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert!(at(folder.path(), &[]).provide(now).unwrap());
        let made = at(folder.path(), &["disk.example"]);
        assert!(made.provide(now).unwrap());
        assert!(!made.provide(now).unwrap());
        fs::write(&made.key, "").unwrap();
        assert!(made.provide(now).unwrap());
        fs::remove_file(&made.certificate).unwrap();
        assert!(made.provide(now).unwrap());
        let other = tempfile::tempdir().unwrap();
        let foreign = at(other.path(), &["disk.example"]);
        foreign.provide(now).unwrap();
        fs::copy(&foreign.key, &made.key).unwrap();
        assert!(made.provide(now).unwrap(), "the key is another's");
    }

    #[test]
    fn where_it_cannot_be_kept_the_remedy_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = at(&folder.path().join("nowhere"), &[])
            .provide(SystemTime::now())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nowhere") && error.contains("state-dir"),
            "{error}"
        );
    }
}
