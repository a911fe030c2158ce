//! The text messages of a `v=1` link: one JSON object each, told apart by `type`.
//!
//! Unknown types and unknown members are ignored by both sides, so that either may be newer than the other.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest text message that is read, in bytes.
pub const MAX_TEXT_LENGTH: usize = 64 * 1024;
/// The longest image name, in bytes.
pub const MAX_NAME_LENGTH: usize = nbd::wire::MAX_STRING_LENGTH;

/// What the side that serves the image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PageMessage {
    /// Which image this link serves; comes before its first NBD bytes.
    Image(ImageInfo),
    /// The session is to end.
    Bye,
    /// To be answered by [`ServerMessage::Pong`] at once: how the round trip is measured.
    Ping,
    /// A type of a newer version.
    #[serde(other)]
    Unknown,
}

/// What the side with the device says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// Nothing but that the server is alive.
    Beat,
    /// The answer to a [`PageMessage::Ping`].
    Pong,
    /// What has become of the image.
    State(DeviceState),
    /// The session has ended.
    End {
        /// One word for programs, [`EndReason::word`](crate::EndReason::word).
        reason: String,
        /// A sentence for people.
        message: String,
    },
    /// A type of a newer version.
    #[serde(other)]
    Unknown,
}

/// An image as the one who serves it announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its file name, without control characters; at most [`MAX_NAME_LENGTH`] bytes.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was modified last, in milliseconds since 1970, where known.
    #[serde(default)]
    pub modified: Option<i64>,
}

/// The device that shows the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Where it is in its life.
    pub phase: DevicePhase,
    /// The configuration's name.
    pub configuration: String,
    /// The device's path, once there is one.
    pub device: Option<String>,
    /// The device's length in bytes: the image's, padded to sectors; 0 while it is unknown.
    pub size: u64,
    /// Whether the machine can only read.
    pub read_only: bool,
    /// Whether an earlier link had served this session.
    pub resumed: bool,
    /// How long the session is still held, in seconds, unless it is served.
    pub seconds_left: Option<u64>,
    /// How long the session is held when its link is lost, in seconds; 0: not at all.
    #[serde(default)]
    pub hold: u64,
    /// How far the kept copy is, where one is to be made.
    #[serde(default)]
    pub keep: Option<KeepState>,
}

/// How far the copy of an image is that is kept on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepState {
    /// How much of the image is there, in bytes.
    pub bytes: u64,
    /// The image's length, in bytes.
    pub size: u64,
    /// All of it is there and was verified: the one who serves the image may go.
    pub whole: bool,
    /// How long that will still take, in seconds, where it can be told.
    pub seconds_left: Option<u64>,
    /// Why there is no copy, for people: the image is streamed.
    #[serde(default)]
    pub problem: Option<String>,
}

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePhase {
    /// It is being set up.
    Attaching,
    /// The machine has it.
    Attached,
    /// The machine has it, but nobody serves its image yet.
    Held,
    /// It is being taken from the machine.
    Draining,
}

/// A text message that breaks a rule.
#[derive(Debug, Error)]
pub enum InvalidMessage {
    /// Longer than [`MAX_TEXT_LENGTH`].
    #[error("a text message of {0} bytes, more than {MAX_TEXT_LENGTH}")]
    TooLong(usize),
    /// Not JSON, or a member is missing or of another type.
    #[error("a text message that cannot be understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The image's name is longer than [`MAX_NAME_LENGTH`].
    #[error("an image name of {0} bytes, more than {MAX_NAME_LENGTH}")]
    LongName(usize),
}

impl PageMessage {
    /// Reads one message; characters in names that could mislead people become U+FFFD.
    pub fn parse(text: &str) -> Result<Self, InvalidMessage> {
        let mut message = parse(text)?;
        if let Self::Image(image) = &mut message {
            if image.name.len() > MAX_NAME_LENGTH {
                return Err(InvalidMessage::LongName(image.name.len()));
            }
            image.name = printable(&image.name);
        }
        Ok(message)
    }

    /// The message as JSON.
    pub fn encode(&self) -> String {
        encode(self)
    }
}

impl ServerMessage {
    /// Reads one message.
    pub fn parse(text: &str) -> Result<Self, InvalidMessage> {
        parse(text)
    }

    /// The message as JSON.
    pub fn encode(&self) -> String {
        encode(self)
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, InvalidMessage> {
    if text.len() > MAX_TEXT_LENGTH {
        return Err(InvalidMessage::TooLong(text.len()));
    }
    Ok(serde_json::from_str(text)?)
}

fn encode<T: Serialize>(message: &T) -> String {
    serde_json::to_string(message).expect("strings, numbers and structs of them are always JSON")
}

/// `text` for logs, terminals and environment variables.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(nbd::printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_announced_with_name_size_and_modification_time() {
        let text =
            r#"{"type":"image","name":"x.iso","size":9007199254740991,"modified":1700000000000}"#;
        let image = ImageInfo {
            name: "x.iso".into(),
            size: (1 << 53) - 1,
            modified: Some(1_700_000_000_000),
        };
        let message = PageMessage::parse(text).unwrap();
        assert_eq!(message, PageMessage::Image(image));
        assert_eq!(message.encode(), text);
    }

    #[test]
    fn the_modification_time_may_be_null_or_missing() {
        for text in [
            r#"{"type":"image","name":"","size":1,"modified":null}"#,
            r#"{"size":1,"name":"","type":"image"}"#,
        ] {
            let image = ImageInfo {
                name: String::new(),
                size: 1,
                modified: None,
            };
            assert_eq!(PageMessage::parse(text).unwrap(), PageMessage::Image(image));
        }
    }

    #[test]
    fn unknown_types_and_members_are_ignored() {
        assert_eq!(
            PageMessage::parse(r#"{"type":"weather","of":{"a":[1]}}"#).unwrap(),
            PageMessage::Unknown
        );
        assert_eq!(
            PageMessage::parse(r#"{"type":"bye","because":"done"}"#).unwrap(),
            PageMessage::Bye
        );
        assert_eq!(
            ServerMessage::parse(r#"{"type":"beat","n":1}"#).unwrap(),
            ServerMessage::Beat
        );
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        let long = format!(
            r#"{{"type":"image","name":"{}","size":1}}"#,
            "x".repeat(MAX_NAME_LENGTH + 1)
        );
        let huge = " ".repeat(MAX_TEXT_LENGTH + 1);
        let negative = r#"{"type":"image","name":"x","size":-1}"#;
        for text in [
            "",
            "{}",
            "[]",
            "3",
            "{\"type\":",
            r#"{"type":"image"}"#,
            negative,
            &long,
            &huge,
        ] {
            assert!(PageMessage::parse(text).is_err(), "{text:.40}");
        }
    }

    #[test]
    fn control_characters_do_not_pass_in_names() {
        let message =
            PageMessage::parse(r#"{"type":"image","name":"a\u0000b\u001b[31m\n","size":1}"#)
                .unwrap();
        let PageMessage::Image(image) = message else {
            panic!("{message:?}")
        };
        assert_eq!(image.name, "a\u{fffd}b\u{fffd}[31m\u{fffd}");
    }

    #[test]
    fn a_state_names_the_phase_and_the_time_left() {
        let state = DeviceState {
            phase: DevicePhase::Held,
            configuration: "0".into(),
            device: Some("/dev/nbd0".into()),
            size: 512,
            read_only: true,
            resumed: true,
            seconds_left: Some(299),
            hold: 300,
            keep: Some(KeepState {
                bytes: 256,
                size: 500,
                ..KeepState::default()
            }),
        };
        let text = ServerMessage::State(state.clone()).encode();
        assert_eq!(
            text,
            r#"{"type":"state","phase":"held","configuration":"0","device":"/dev/nbd0","size":512,"read_only":true,"resumed":true,"seconds_left":299,"hold":300,"keep":{"bytes":256,"size":500,"whole":false,"seconds_left":null,"problem":null}}"#
        );
        assert_eq!(
            ServerMessage::parse(&text).unwrap(),
            ServerMessage::State(state)
        );
    }
}
