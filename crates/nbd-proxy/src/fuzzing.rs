//! Doors for the fuzz targets, and for nobody else: what the program does with the bytes of strangers, without its
//! machine around it.

use std::{ffi::OsString, path::Path};

use crate::{
    cli,
    config::{Config, Strictness},
};

#[cfg(feature = "serve")]
mod websocket;
#[cfg(feature = "serve")]
pub use websocket::{Received, websocket};

/// Reads a configuration as `serve` does (`strict`), or as the stdin/stdout form does. Gives what `--metadata` prints.
pub fn config(text: &str, strict: bool) -> Result<serde_json::Value, String> {
    let strictness = match strict {
        true => Strictness::Strict,
        false => Strictness::Lenient,
    };
    let (config, _) = Config::parse(Path::new("config.json"), text.to_owned(), strictness)
        .map_err(|error| error.to_string())?;
    Ok(config.metadata())
}

/// Runs the program with these arguments, its name first.
pub fn program(arguments: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    let action = cli::parse(arguments).map_err(|error| cli::one_line(&error))?;
    crate::run(action)
        .map(drop)
        .map_err(|error| error.to_string())
}
