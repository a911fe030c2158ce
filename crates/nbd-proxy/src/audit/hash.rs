//! SHA-256 of a kept copy.

use std::fmt;

use ring::digest;

use crate::keep::Hasher;

struct Sha256(digest::Context);

/// A hash that has seen nothing yet.
pub(super) fn sha256() -> Box<dyn Hasher> {
    Box::new(Sha256(digest::Context::new(&digest::SHA256)))
}

impl Hasher for Sha256 {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self: Box<Self>) -> String {
        let digest = self.0.finish();
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sha256(…)")
    }
}
