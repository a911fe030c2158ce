//! Strings from the wire (proto.md, "Conventions").

use crate::wire::{MAX_STRING_LENGTH, wire_length};

/// A string that proto.md forbids ("Conventions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidString {
    /// Longer than 4096 bytes.
    #[error("a string of {0} bytes, where 4096 is the limit")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("a string that is not UTF-8")]
    NotUtf8,
    /// With a NUL character in it.
    #[error("a string with a NUL character in it")]
    Nul,
}

/// The string in `bytes`, for programs: an export's name, a metadata context.
pub(crate) fn parse_string(bytes: &[u8]) -> Result<String, InvalidString> {
    if bytes.len() > MAX_STRING_LENGTH {
        return Err(InvalidString::TooLong(bytes.len()));
    }
    let string = std::str::from_utf8(bytes).map_err(|_| InvalidString::NotUtf8)?;
    if string.contains('\0') {
        return Err(InvalidString::Nul);
    }
    Ok(string.to_owned())
}

/// The text in `bytes`, for people: cut after 4096 bytes, and with a replacement character for
/// whatever could mislead a terminal or a log.
pub(crate) fn display_text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_STRING_LENGTH)];
    String::from_utf8_lossy(shown)
        .chars()
        .map(printable)
        .collect()
}

/// `character` where people may see it as it is, and U+FFFD for one that could mislead them: control characters, which
/// drive terminals and begin lines, and those that turn the direction of text around or cannot be seen (Unicode
/// Standard Annex #9, section 2, and chapter 23.2 and 23.3 of the standard).
pub fn printable(character: char) -> char {
    match character {
        '\u{61c}'
        | '\u{200b}'
        | '\u{200e}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => char::REPLACEMENT_CHARACTER,
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

/// The longest beginning of `text` that fits into a string of the protocol.
pub(crate) fn truncate(text: &str) -> &str {
    let end = (0..=MAX_STRING_LENGTH.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// The string as options and their replies carry it: its length in 32 bits, then its bytes.
pub(crate) fn with_length(string: &str) -> Vec<u8> {
    [&wire_length(string.len()).to_be_bytes(), string.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_have_a_length_an_encoding_and_no_nul() {
        let longest = "x".repeat(MAX_STRING_LENGTH);
        assert_eq!(parse_string(longest.as_bytes()), Ok(longest.clone()));
        let too_long = longest + "x";
        assert_eq!(
            parse_string(too_long.as_bytes()),
            Err(InvalidString::TooLong(4097))
        );
        assert_eq!(parse_string(b"\xff"), Err(InvalidString::NotUtf8));
        assert_eq!(parse_string(b"a\0b"), Err(InvalidString::Nul));
    }

    #[test]
    fn text_for_people_cannot_drive_a_terminal() {
        assert_eq!(
            display_text(b"a\x1b[2J\n\xffb"),
            "a\u{fffd}[2J\u{fffd}\u{fffd}b"
        );
        assert_eq!(display_text(&[b'x'; 5000]).len(), MAX_STRING_LENGTH);
    }

    #[test]
    fn text_for_people_reads_as_it_is_written() {
        assert_eq!(
            display_text("cod\u{202e}osi.exe\u{2069}\u{200b}\u{2028}".as_bytes()),
            "cod\u{fffd}osi.exe\u{fffd}\u{fffd}\u{fffd}"
        );
        let name = "Größe ۵ \u{5e9}\u{5dc}\u{5d5}\u{5dd} 👩\u{200d}💻.iso";
        assert_eq!(display_text(name.as_bytes()), name);
    }

    #[test]
    fn truncation_leaves_characters_whole() {
        let text = "é".repeat(MAX_STRING_LENGTH);
        assert_eq!(truncate(&text).len(), MAX_STRING_LENGTH);
        let odd = "x".to_owned() + &text;
        assert_eq!(truncate(&odd).len(), MAX_STRING_LENGTH - 1);
        assert_eq!(truncate("short"), "short");
    }
}
