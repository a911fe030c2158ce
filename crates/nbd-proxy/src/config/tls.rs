//! The member `tls`: the files of a certificate, of `serve` or of a device on TCP.

use std::path::{Path, PathBuf};

use super::reader::Section;

/// Files in PEM, which are read anew when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The server's certificate first, then those between it and its authority.
    pub(crate) certificate: PathBuf,
    /// Its private key, unencrypted.
    pub(crate) key: PathBuf,
    /// The authorities whose certificates clients show.
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// All of them.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let required = [&self.certificate, &self.key];
        required
            .into_iter()
            .chain(&self.client_ca)
            .map(PathBuf::as_path)
    }
}

/// Reads the member `tls`, if there is one.
pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Option<TlsFiles>, String> {
    let Some(value) = section.take("tls") else {
        return Ok(None);
    };
    let mut section = section.subsection("tls", value)?;
    let missing = |section: &Section<'_, '_>, key: &str| {
        section.about(
            key,
            "is missing; \"tls\" has \"certificate\" and \"key\", paths of PEM files, and perhaps \"client-ca\"",
        )
    };
    let certificate = section.text("certificate")?.map(PathBuf::from);
    let key = section.text("key")?.map(PathBuf::from);
    let files = TlsFiles {
        certificate: certificate.ok_or_else(|| missing(&section, "certificate"))?,
        key: key.ok_or_else(|| missing(&section, "key"))?,
        client_ca: section.text("client-ca")?.map(PathBuf::from),
    };
    section.finish()?;
    Ok(Some(files))
}
