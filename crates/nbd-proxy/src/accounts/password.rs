//! Passwords, and what is kept of them: Argon2id (RFC 9106) with 19 MiB, 2 passes and 1 lane, which OWASP's password
//! storage cheat sheet gives as equal to its larger settings. RFC 9106's own 64 MiB are too much for a management
//! controller.

use anyhow::ensure;
use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};

/// The fewest characters of a new password (NIST SP 800-63B asks for 8; here it may be all there is between the network
/// and a disk).
pub(crate) const SHORTEST: usize = 10;
/// The longest password, bytes.
pub(crate) const LONGEST: usize = 1024;

/// Of no password: what a user's password is compared with who isn't there, so that it takes as long.
pub(crate) const DUMMY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU$ZUOmqjNjuxBHHvE7PNzVG8EmW6hKEaRkxkZ8QkS3ynE";

/// Whether a person may choose it.
pub(crate) fn check(password: &str) -> anyhow::Result<()> {
    ensure!(
        password.chars().count() >= SHORTEST,
        "a password needs at least {SHORTEST} characters"
    );
    ensure!(
        password.len() <= LONGEST,
        "a password may have at most {LONGEST} bytes"
    );
    Ok(())
}

/// What is kept of it.
pub(crate) fn hash(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default()
        .hash_password(password.as_bytes())
        .map_err(|error| anyhow::anyhow!("the password can't be hashed: {error}"))?;
    Ok(hash.to_string())
}

/// Whether it is one.
pub(super) fn check_hash(hash: &str) -> anyhow::Result<()> {
    let hash = PasswordHash::new(hash).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(
        hash.algorithm.as_str().starts_with("argon2"),
        "it is {}",
        hash.algorithm
    );
    Ok(())
}

/// Whether `hash` is of this password. Takes a good part of a second on a small machine, and the memory that it says.
pub(crate) fn matches(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| {
        Argon2::default()
            .verify_password(password.as_bytes(), &hash)
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_matches_its_own_hash_alone() {
        let hash = hash("correct horse").unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert!(check_hash(&hash).is_ok());
        assert!(matches("correct horse", &hash));
        for wrong in ["", "correct hors", "correct horse "] {
            assert!(!matches(wrong, &hash), "{wrong}");
        }
    }

    #[test]
    fn nobody_costs_as_much_as_somebody() {
        let parameters = |hash: &str| hash.rsplitn(3, '$').last().map(str::to_owned);
        assert!(check_hash(DUMMY).is_ok());
        assert_eq!(
            parameters(DUMMY),
            parameters(&hash("some password").unwrap())
        );
    }

    #[test]
    fn a_hash_that_is_none_is_named() {
        for text in [
            "",
            "plain",
            "$2b$12$abcdefghijklmnopqrstuv",
            "$pbkdf2-sha256$i=1$c2FsdHNhbHQ$aGFzaA",
        ] {
            assert!(check_hash(text).is_err(), "{text}");
            assert!(!matches("plain", text));
        }
    }
}
