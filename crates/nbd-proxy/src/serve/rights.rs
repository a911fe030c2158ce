//! What somebody may do, in words.

use super::auth::Auth;
use crate::{
    config::{Config, Configuration, Right},
    report,
};

/// A sentence for who lacks a right.
pub(super) fn missing(user: &str, right: Right, configuration: &Configuration) -> String {
    let what = match right {
        Right::Attach => "attach an image to",
        Right::Resume => "go on with a session of",
        Right::Eject => "eject what is attached to",
        Right::Look => "see",
    };
    format!(
        "{user} may not {what} configuration {:?}; its \"allow\" does not give the right \"{}\"",
        configuration.name,
        right.as_str()
    )
}

/// Tells the administrator of rights that nobody has, or that nobody can use.
pub(super) fn warn(config: &Config, auth: &Auth) {
    for configuration in &config.configurations {
        let name = &configuration.name;
        if configuration.allow.is_empty() && auth.token().is_none() {
            report::warning(format_args!(
                "configuration {name:?} has no \"allow\", so nobody who signs in may do anything with it"
            ));
        }
        for user in configuration.allow.users() {
            if !auth.may_know(user) {
                report::warning(format_args!(
                    "\"allow\" of configuration {name:?} names {user:?}, who is in neither the file of users nor that of \
                     tokens"
                ));
            }
        }
    }
}
