//! `keep`: whether and where a copy of the image is made, so that the one who serves it may go.

use std::path::PathBuf;

use serde_json::Value;

use super::reader::Section;

/// A copy is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Where.
    pub(crate) place: Place,
    /// Of larger images there is none, in bytes.
    pub(crate) limit: Option<u64>,
}

/// Where a copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this process.
    Memory,
    /// In a file in this directory.
    Directory(PathBuf),
}

const FORMS: &str = "must be \"off\", \"memory\", the absolute path of a directory, or {\"in\": …, \"limit\": BYTES}";

/// Reads `keep`; `None` is off.
pub(super) fn read(section: &mut Section<'_, '_>) -> Result<Option<Keep>, String> {
    match section.take("keep") {
        None => Ok(None),
        Some(Value::String(text)) => match text.as_str() {
            "off" => Ok(None),
            text => match parse_place(text) {
                Some(place) => Ok(Some(Keep { place, limit: None })),
                None => Err(section.about("keep", &format!("is {text:?}; it {FORMS}"))),
            },
        },
        Some(value @ Value::Object(_)) => read_object(section, value).map(Some),
        Some(_) => Err(section.about("keep", FORMS)),
    }
}

fn read_object(section: &mut Section<'_, '_>, value: &Value) -> Result<Keep, String> {
    let mut members = section.subsection("keep", value)?;
    let place = match members.text("in")?.map(|text| (text, parse_place(text))) {
        Some((_, Some(place))) => place,
        Some((text, None)) => {
            let message =
                format!("is {text:?}; it must be \"memory\" or the absolute path of a directory");
            return Err(members.about("in", &message));
        }
        None => {
            return Err(members.about("in", "is missing; it says where: \"memory\" or a directory"));
        }
    };
    let limit = members.integer("limit")?;
    if limit == Some(0) {
        return Err(members.about(
            "limit",
            "is 0 bytes; for no copy at all, set \"keep\" to \"off\"",
        ));
    }
    members.finish()?;
    Ok(Keep { place, limit })
}

fn parse_place(text: &str) -> Option<Place> {
    match text {
        "memory" => Some(Place::Memory),
        path if path.starts_with('/') => Some(Place::Directory(path.into())),
        _ => None,
    }
}
