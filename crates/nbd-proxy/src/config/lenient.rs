//! The liberties that json-c's default parser allows: comments, and a comma before a closing bracket.

/// Turns them into JSON. Line and column of everything else stay what they were.
pub(super) fn to_json(text: &str) -> String {
    let mut json = String::with_capacity(text.len());
    // Where in `json` a comma waits that nothing but blanks has followed.
    let mut comma: Option<usize> = None;
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, rest.peek()) {
            ('"', _) => {
                json.push('"');
                copy_string(&mut rest, &mut json);
                comma = None;
            }
            ('/', Some('/')) => blank(&mut rest, &mut json, "\n"),
            ('/', Some('*')) => blank(&mut rest, &mut json, "*/"),
            ('}' | ']', _) => {
                if let Some(position) = comma.take() {
                    json.replace_range(position..=position, " ");
                }
                json.push(character);
            }
            (',', _) => {
                comma = Some(json.len());
                json.push(',');
            }
            _ => {
                if !character.is_whitespace() {
                    comma = None;
                }
                json.push(character);
            }
        }
    }
    json
}

/// Copies the rest of a string, its closing quote included.
fn copy_string(rest: &mut impl Iterator<Item = char>, json: &mut String) {
    while let Some(character) = rest.next() {
        json.push(character);
        match character {
            '"' => return,
            '\\' => json.extend(rest.next()),
            _ => {}
        }
    }
}

/// Puts blanks for a comment whose first slash was taken, up to and including its `end`; line ends stay.
fn blank(rest: &mut impl Iterator<Item = char>, json: &mut String, end: &str) {
    json.push(' ');
    // The opening's second character is no part of the end: `/*/` does not close itself.
    json.extend(rest.next().map(|_| ' '));
    let mut last = '\0';
    for character in rest {
        json.push(if character == '\n' { '\n' } else { ' ' });
        let closed = match end {
            "\n" => character == '\n',
            _ => last == '*' && character == '/',
        };
        if closed {
            return;
        }
        last = character;
    }
}

#[cfg(test)]
mod tests {
    use super::to_json;

    fn value(text: &str) -> serde_json::Value {
        serde_json::from_str(&to_json(text)).unwrap()
    }

    #[test]
    fn comments_and_trailing_commas_are_taken_out() {
        let text = "// first\n{ /* a, } */ \"a\": [1, 2, /* c */ ], // \"b\"\n \"url\": \"http://x/*y*/,]\", /*/ */ }";
        assert_eq!(
            value(text),
            serde_json::json!({"a": [1, 2], "url": "http://x/*y*/,]"})
        );
    }

    #[test]
    fn an_escaped_quote_does_not_end_a_string() {
        assert_eq!(
            value(r#"["a\"//b", "\\"]"#),
            serde_json::json!(["a\"//b", "\\"])
        );
    }

    #[test]
    fn errors_keep_their_place() {
        let text = "{ /* one\n two */ \"a\": oops }";
        let (before, after) = (text, to_json(text));
        assert_eq!(before.find("oops"), after.find("oops"));
        assert_eq!(before.lines().count(), after.lines().count());
    }

    #[test]
    fn an_open_end_is_left_to_the_parser() {
        for text in ["{ \"a", "{ /* ", "{ //", "\"\\", "/"] {
            assert!(
                serde_json::from_str::<serde_json::Value>(&to_json(text)).is_err(),
                "{text}"
            );
        }
    }
}
