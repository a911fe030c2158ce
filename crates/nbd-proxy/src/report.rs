//! Messages, one line each: on standard error, for people or as JSON for programs, and in the stdin/stdout form to
//! syslog too, since bmcweb gives its child no standard error.

use std::{
    fmt::Display,
    io::Write,
    os::unix::net::UnixDatagram,
    sync::{LazyLock, OnceLock},
    time::{Duration, Instant, SystemTime},
};

#[cfg(feature = "serve")]
use crate::audit;
use crate::throttle::Throttle;

/// Where the system's logger listens.
const SYSLOG_SOCKET: &str = "/dev/log";
/// Facility `daemon` of RFC 5424, section 6.2.1, times eight.
const FACILITY: u8 = 3 << 3;

/// The variable that says how messages look on standard error.
#[cfg(feature = "serve")]
pub(crate) const FORM_VARIABLE: &str = "NBD_PROXY_LOG";

static SYSLOG: OnceLock<UnixDatagram> = OnceLock::new();
static FORM: LazyLock<Form> = LazyLock::new(Form::here);

/// How grave a message is, as syslog counts.
#[derive(Clone, Copy)]
enum Severity {
    Error = 3,
    Warning = 4,
    Information = 6,
}

#[cfg(feature = "serve")]
impl Severity {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Information => "info",
        }
    }
}

/// How a message looks on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// For people.
    Text,
    /// The same with the severity before it, which the journal takes off (sd-daemon(3)).
    #[cfg(feature = "serve")]
    Journal,
    /// An object of JSON on each line.
    #[cfg(feature = "serve")]
    Json,
}

impl Form {
    #[cfg(not(feature = "serve"))]
    fn here() -> Self {
        Self::Text
    }

    #[cfg(feature = "serve")]
    fn here() -> Self {
        match std::env::var(FORM_VARIABLE).as_deref() {
            Ok("json") => Self::Json,
            _ if audit::journal_has_standard_error() => Self::Journal,
            _ => Self::Text,
        }
    }

    #[cfg_attr(
        not(feature = "serve"),
        expect(unused_variables, reason = "text has neither")
    )]
    fn line(self, severity: Severity, message: &str, now: SystemTime) -> String {
        match self {
            Self::Text => format!("nbd-proxy: {message}\n"),
            #[cfg(feature = "serve")]
            Self::Journal => format!("<{}>nbd-proxy: {message}\n", severity as u8),
            #[cfg(feature = "serve")]
            Self::Json => {
                let time = audit::rfc3339(now);
                let severity = severity.name();
                let line =
                    serde_json::json!({ "time": time, "severity": severity, "message": message });
                format!("{line}\n")
            }
        }
    }
}

/// Whether messages can look as they are wanted to.
///
/// # Errors
///
/// [`FORM_VARIABLE`] has another value than `text` and `json`.
#[cfg(feature = "serve")]
pub(crate) fn check_form() -> anyhow::Result<()> {
    match std::env::var_os(FORM_VARIABLE) {
        Some(form) if form != "text" && form != "json" => anyhow::bail!(
            "${FORM_VARIABLE} is {form:?}; it has to be \"text\" or \"json\", or not set"
        ),
        _ => Ok(()),
    }
}

/// From now on messages go to syslog as well, where there is one.
pub(crate) fn enable_syslog() {
    let Ok(socket) = UnixDatagram::unbound() else {
        return;
    };
    if socket.connect(SYSLOG_SOCKET).is_ok() && socket.set_nonblocking(true).is_ok() {
        let _ = SYSLOG.set(socket);
    }
}

/// Something failed.
pub(crate) fn error(message: impl Display) {
    say(Severity::Error, &message);
}

/// Something is not as it should be, and we go on.
pub(crate) fn warning(message: impl Display) {
    say(Severity::Warning, &message);
}

/// Something worth knowing happened.
pub(crate) fn information(message: impl Display) {
    say(Severity::Information, &message);
}

/// Messages of one kind that a stranger can cause: 20 at once, then one in two seconds. How many were left out is told
/// before the next.
pub(crate) struct Kind(Throttle);

impl Kind {
    /// Of which nothing has been said.
    pub(crate) const fn new() -> Self {
        Self(Throttle::new(20, Duration::from_secs(2)))
    }

    /// As [`error`].
    #[cfg(feature = "serve")]
    pub(crate) fn error(&self, message: impl Display) {
        self.say(Severity::Error, &message);
    }

    /// As [`information`].
    pub(crate) fn information(&self, message: impl Display) {
        self.say(Severity::Information, &message);
    }

    /// As [`warning`].
    pub(crate) fn warning(&self, message: impl Display) {
        self.say(Severity::Warning, &message);
    }

    fn say(&self, severity: Severity, message: &dyn Display) {
        match self.0.admit(Instant::now()) {
            Some(0) => say(severity, message),
            Some(omitted) => {
                say(
                    severity,
                    &format_args!("{omitted} messages like the next were left out"),
                );
                say(severity, message);
            }
            None => {}
        }
    }
}

/// An error with its causes, each told once: many sentences name theirs already.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |told, cause| match told.contains(&cause) {
        true => told,
        false => format!("{told}: {cause}"),
    })
}

fn say(severity: Severity, message: &dyn Display) {
    let message = one_line(&message.to_string());
    // Nobody may be listening; there is no better place to complain.
    let line = FORM.line(severity, &message, SystemTime::now());
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(socket) = SYSLOG.get() {
        let priority = FACILITY | severity as u8;
        let _ = socket
            .send(format!("<{priority}>nbd-proxy[{}]: {message}", std::process::id()).as_bytes());
    }
}

/// Peers have a say in some messages; none of them can start a line of its own or reach a terminal's controls.
fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for character in message.chars() {
        match is_treacherous(character) {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

/// Whether people could be misled by a character.
pub(crate) fn is_treacherous(character: char) -> bool {
    nbd::printable(character) != character
}

#[cfg(test)]
mod tests {
    use super::{one_line, sentence};

    #[test]
    #[cfg(feature = "serve")]
    fn each_form_has_the_severity_that_its_reader_looks_for() {
        use super::{Duration, Form, Severity, SystemTime};
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let line = |form: Form| form.line(Severity::Warning, "the \"disk\" is full", now);
        assert_eq!(line(Form::Text), "nbd-proxy: the \"disk\" is full\n");
        assert_eq!(line(Form::Journal), "<4>nbd-proxy: the \"disk\" is full\n");
        let json: serde_json::Value = serde_json::from_str(&line(Form::Json)).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:01.500Z");
        assert_eq!(json["severity"], "warning");
        assert_eq!(json["message"], "the \"disk\" is full");
    }

    #[test]
    fn a_cause_that_was_named_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't read the file: {source}; choose another")]
        struct Unreadable {
            source: std::io::Error,
        }
        let error = anyhow::Error::new(Unreadable {
            source: std::io::Error::other("no such file"),
        });
        assert_eq!(
            sentence(&error),
            "can't read the file: no such file; choose another"
        );
        let error = anyhow::anyhow!("the disk is full")
            .context("can't write")
            .context("can't start");
        assert_eq!(
            sentence(&error),
            "can't start: can't write: the disk is full"
        );
    }

    #[test]
    fn control_and_bidi_characters_of_a_peer_are_escaped() {
        assert_eq!(
            one_line("evil\nnbd-proxy: \u{1b}[2Jfine"),
            "evil\\nnbd-proxy: \\u{1b}[2Jfine"
        );
        assert_eq!(
            one_line("exe.\u{202e}gpj\u{2066}\u{2028}"),
            "exe.\\u{202e}gpj\\u{2066}\\u{2028}"
        );
        assert_eq!(one_line("Größe 5 µm"), "Größe 5 µm");
    }
}
