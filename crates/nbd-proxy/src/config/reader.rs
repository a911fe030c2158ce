//! Reads typed members out of JSON objects, with errors that name the key and, for a misspelt one, the nearest.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use super::Strictness;

/// The longest span of time that a configuration may name: a year.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads one file: how strictly, and what was forgiven.
#[derive(Debug)]
pub(super) struct Reader {
    strictness: Strictness,
    warnings: Vec<String>,
}

impl Reader {
    pub(super) fn new(strictness: Strictness) -> Self {
        Self {
            strictness,
            warnings: Vec::new(),
        }
    }

    pub(super) fn strictness(&self) -> Strictness {
        self.strictness
    }

    /// Notes what is wrong, where that is forgiven.
    pub(super) fn forgive(&mut self, message: String) -> Result<(), String> {
        match self.strictness {
            Strictness::Strict => Err(message),
            Strictness::Lenient => {
                self.warnings.push(message);
                Ok(())
            }
        }
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    /// Begins an object; `path` is empty for the whole file.
    pub(super) fn section<'r, 'v>(
        &'r mut self,
        path: &str,
        value: &'v Value,
    ) -> Result<Section<'r, 'v>, String> {
        match value {
            Value::Object(members) => Ok(Section {
                reader: self,
                path: path.into(),
                members,
                known: Vec::new(),
            }),
            _ if path.is_empty() => Err("the file is not a JSON object".into()),
            _ => Err(format!("\"{path}\" is not an object")),
        }
    }
}

/// One object being read. Each key that is asked for becomes a known one; [`Section::finish`] judges the rest.
pub(super) struct Section<'r, 'v> {
    reader: &'r mut Reader,
    path: String,
    members: &'v Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'v> Section<'_, 'v> {
    pub(super) fn reader(&mut self) -> &mut Reader {
        self.reader
    }

    /// Begins the object that is the value of `key`.
    pub(super) fn subsection<'s>(
        &'s mut self,
        key: &str,
        value: &'s Value,
    ) -> Result<Section<'s, 's>, String> {
        let path = format!("{}.{key}", self.path);
        self.reader.section(&path, value)
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<&'v Value> {
        self.known.push(key);
        self.members.get(key)
    }

    /// An error about one key.
    pub(super) fn about(&self, key: &str, message: &str) -> String {
        match self.path.is_empty() {
            true => format!("\"{key}\" {message}"),
            false => format!("\"{}.{key}\" {message}", self.path),
        }
    }

    fn lenient(&self) -> bool {
        self.reader.strictness == Strictness::Lenient
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<&'v str>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(_) => Err(self.about(key, "is not a text")),
        }
    }

    /// Relative ones would depend on where the program happens to be started.
    pub(super) fn absolute_path(&mut self, key: &'static str) -> Result<Option<PathBuf>, String> {
        match self.text(key)? {
            Some(path) if !path.starts_with('/') => {
                Err(self.about(key, &format!("is {path:?}, not an absolute path")))
            }
            path => Ok(path.map(PathBuf::from)),
        }
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Result<Vec<String>, String> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let texts: Option<Vec<String>> = value.as_array().and_then(|list| {
            list.iter()
                .map(|one| one.as_str().map(String::from))
                .collect()
        });
        texts.ok_or_else(|| self.about(key, "is not a list of texts"))
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, String> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<_> = words
                    .iter()
                    .map(|(word, _)| format!("\"{word}\""))
                    .collect();
                Err(self.about(
                    key,
                    &format!("is {text:?}, not one of {}", words.join(", ")),
                ))
            }
        }
    }

    /// The prototype took numbers and texts for truth values as well, as json-c converts them.
    pub(super) fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(Value::Number(number)) if self.lenient() => Ok(Some(number.as_f64() != Some(0.0))),
            Some(Value::String(text)) if self.lenient() => Ok(Some(!text.is_empty())),
            Some(_) => Err(self.about(key, "is neither true nor false")),
        }
    }

    /// A whole number; as a text too where the prototype took one.
    pub(super) fn integer(&mut self, key: &'static str) -> Result<Option<u64>, String> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = match value {
            Value::String(text) if self.lenient() => text.trim().parse().ok(),
            _ => value.as_u64(),
        };
        number
            .map(Some)
            .ok_or_else(|| self.about(key, "is not a whole number, 0 or more"))
    }

    pub(super) fn seconds(&mut self, key: &'static str) -> Result<Option<Duration>, String> {
        match self.integer(key)? {
            Some(seconds) if seconds > LONGEST.as_secs() => {
                Err(self.about(key, &format!("is more than {} seconds", LONGEST.as_secs())))
            }
            seconds => Ok(seconds.map(Duration::from_secs)),
        }
    }

    /// An object, as it is. The prototype ignored anything else.
    pub(super) fn object(
        &mut self,
        key: &'static str,
    ) -> Result<Option<Map<String, Value>>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members.clone())),
            Some(_) if self.lenient() => {
                let warning = self.about(key, "is not an object: ignored");
                self.reader.warnings.push(warning);
                Ok(None)
            }
            Some(_) => Err(self.about(key, "is not an object")),
        }
    }

    /// A key that is there and may have been meant to be this one, which is not.
    pub(super) fn misspelt(&self, key: &str) -> Option<&str> {
        let mut others = self.members.keys().map(String::as_str);
        others.find(|other| strsim::osa_distance(key, other) <= 2)
    }

    /// Ends the section: what nobody asked for is unknown.
    pub(super) fn finish(self) -> Result<(), String> {
        for key in self
            .members
            .keys()
            .filter(|key| !self.known.contains(&key.as_str()))
        {
            let message = self.about(key, &format!("is not known{}", self.hint(key)));
            match self.reader.strictness {
                Strictness::Strict => return Err(message),
                Strictness::Lenient => self.reader.warnings.push(format!("{message}: ignored")),
            }
        }
        Ok(())
    }

    fn hint(&self, key: &str) -> String {
        let nearest = self
            .known
            .iter()
            .min_by_key(|known| strsim::osa_distance(key, known));
        nearest.map_or_else(String::new, |known| {
            format!("; the nearest known key is \"{known}\"")
        })
    }
}
