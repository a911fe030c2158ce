//! From an event to a line, and to whoever keeps it.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::event::Event;
use crate::report;

/// Whoever keeps the trail. Calls may block.
pub(super) trait Sink: Send {
    /// Where that is, for people.
    fn place(&self) -> String;

    /// Keeps one entry, or nothing of it.
    fn keep(&mut self, entry: &Entry) -> io::Result<()>;
}

/// An event, ready to be kept.
pub(super) struct Entry {
    /// One JSON object, without a line break.
    pub(super) line: String,
    /// Its members.
    pub(super) members: Map<String, Value>,
    pub(super) is_warning: bool,
}

impl Entry {
    pub(super) fn new(time: SystemTime, event: &Event) -> Self {
        #[derive(Serialize)]
        struct Record<'a> {
            time: String,
            #[serde(flatten)]
            event: &'a Event,
        }
        let record = Record {
            time: rfc3339(time),
            event,
        };
        let members = match serde_json::to_value(record) {
            Ok(Value::Object(members)) => members,
            // Events are made of texts and numbers, so that this can't be.
            _ => Map::new(),
        };
        Self {
            line: escaped(&Value::Object(members.clone()).to_string()),
            members,
            is_warning: event.is_warning(),
        }
    }
}

/// UTC with milliseconds (RFC 3339, section 5.6).
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

/// JSON escapes line breaks and the like by itself. What else could fool the reader of a terminal can stand in a text
/// of it only, and every text may have any character escaped (RFC 8259, section 7).
fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        if report::is_treacherous(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String can't fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(character);
        }
    }
    line
}

/// Keeps events, and tells once when that fails and once when it works again.
pub(super) struct Writer<S> {
    sink: S,
    /// Events that were not kept, for want of room in the queue too.
    lost: Arc<AtomicU64>,
    /// As many of them as the trail has told of.
    told: u64,
    failing: bool,
}

impl<S: Sink> Writer<S> {
    pub(super) fn new(sink: S, lost: Arc<AtomicU64>) -> Self {
        Self {
            sink,
            lost,
            told: 0,
            failing: false,
        }
    }

    pub(super) fn write(&mut self, time: SystemTime, event: &Event) {
        if let Err(error) = self.try_write(time, event) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            if !std::mem::replace(&mut self.failing, true) {
                report::error(format_args!(
                    "the audit trail can't be written to {}: {error}; sessions go on, and events are lost until that \
                     is remedied",
                    self.sink.place()
                ));
            }
        }
    }

    fn try_write(&mut self, time: SystemTime, event: &Event) -> io::Result<()> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let count = lost - self.told;
            let gap = Event::EventsLost { count };
            self.sink.keep(&Entry::new(time, &gap))?;
            self.told = lost;
            report::warning(format_args!(
                "the audit trail in {} lacks {count} events",
                self.sink.place()
            ));
        }
        self.sink.keep(&Entry::new(time, event))?;
        self.failing = false;
        Ok(())
    }
}

/// One line for each event on standard error, beside the messages for people.
pub(super) struct StandardError;

impl Sink for StandardError {
    fn place(&self) -> String {
        "standard error".into()
    }

    fn keep(&mut self, entry: &Entry) -> io::Result<()> {
        // At once, so that no other line comes in between.
        io::stderr().write_all(format!("{}\n", entry.line).as_bytes())
    }
}
