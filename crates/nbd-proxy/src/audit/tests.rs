//! What is kept of events, and what becomes of them where that fails.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    time::UNIX_EPOCH,
};

use serde_json::{Value, json};

use super::{
    writer::{Entry, Sink, Writer},
    *,
};

fn refused(reason: &str) -> Event {
    Event::LinkRefused {
        who: Who {
            user: Some("anna".into()),
            from: "192.0.2.1:4711".into(),
        },
        configuration: Some("0".into()),
        session: None,
        code: 4409,
        reason: reason.into(),
    }
}

fn stopped(reason: &str) -> Event {
    Event::ServerStopped {
        reason: reason.into(),
    }
}

fn attached(name: &str) -> Event {
    Event::Attached(Session {
        user: "anna".into(),
        image: Some(Image {
            name: name.into(),
            size: 5,
            ..Image::default()
        }),
        ..Session::default()
    })
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn file_trail(path: &Path) -> Audit {
    Audit::start(&Destination::File(path.into())).unwrap()
}

#[test]
fn an_event_is_one_line_of_json_with_its_time_first() {
    let time = UNIX_EPOCH + Duration::from_millis(1_790_000_000_007);
    assert_eq!(
        Entry::new(time, &refused("in use")).line,
        r#"{"time":"2026-09-21T14:13:20.007Z","event":"link_refused","user":"anna","from":"192.0.2.1:4711","configuration":"0","session":null,"code":4409,"reason":"in use"}"#
    );
}

#[test]
fn a_name_cannot_begin_a_line_add_a_member_or_turn_the_text_around() {
    let name = "a\n{\"event\":\"ended\"}\u{1b}[2J\u{9b}\u{202e}\u{2028}\",\"user\":\"root\u{7f}é";
    let line = Entry::new(UNIX_EPOCH, &attached(name)).line;
    assert!(!line.chars().any(report::is_treacherous), "{line}");
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["image"]["name"], name);
    assert_eq!(value["user"], "anna");
    assert!(line.contains('é'), "{line}");
}

#[test]
fn a_file_is_its_owners_alone_and_is_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    for reason in ["one", "two"] {
        let audit = file_trail(&path);
        audit.tell(stopped(reason));
        audit.flush();
    }
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let reasons: Vec<_> = lines(&path)
        .iter()
        .map(|line| line["reason"].clone())
        .collect();
    assert_eq!(reasons, ["one", "two"]);
}

#[test]
fn a_file_that_was_moved_away_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
    let audit = file_trail(&path);
    audit.tell(stopped("before"));
    audit.flush();
    fs::rename(&path, &old).unwrap();
    audit.tell(stopped("after"));
    audit.flush();
    assert_eq!(lines(&old)[0]["reason"], "before");
    assert_eq!(lines(&path)[0]["reason"], "after");
    assert_eq!((lines(&old).len(), lines(&path).len()), (1, 1));
}

#[test]
fn a_link_or_a_pipe_in_the_place_of_the_file_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("link"), folder.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(Audit::start(&Destination::File(link)).is_err());
    assert!(!target.exists());
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(Audit::start(&Destination::File(pipe)).is_err());
}

/// Does as it is told, and says what it kept.
struct Scripted {
    results: Receiver<io::Result<()>>,
    kept: Sender<String>,
}

impl Sink for Scripted {
    fn place(&self) -> String {
        "a test".into()
    }

    fn keep(&mut self, entry: &Entry) -> io::Result<()> {
        self.results.recv().unwrap()?;
        let line: Value = serde_json::from_str(&entry.line).unwrap();
        let what = line.get("reason").or(line.get("count")).unwrap();
        self.kept.send(what.to_string()).unwrap();
        Ok(())
    }
}

fn scripted() -> (Scripted, Sender<io::Result<()>>, Receiver<String>) {
    let (script, results) = channel();
    let (kept, found) = channel();
    (Scripted { results, kept }, script, found)
}

#[test]
fn after_a_full_disk_the_trail_tells_how_many_events_it_lacks() {
    let (sink, script, found) = scripted();
    let lost = Arc::new(AtomicU64::new(0));
    let mut writer = Writer::new(sink, Arc::clone(&lost));
    let full = || Err(io::ErrorKind::StorageFull.into());
    for result in [Ok(()), full(), full(), Ok(()), Ok(())] {
        script.send(result).unwrap();
    }
    for reason in ["a", "b", "c", "d"] {
        writer.write(UNIX_EPOCH, &stopped(reason));
    }
    assert_eq!(
        found.try_iter().collect::<Vec<_>>(),
        ["\"a\"", "2", "\"d\""]
    );
    assert_eq!(lost.load(Ordering::Relaxed), 2);
}

#[test]
fn who_tells_never_waits_for_a_sink_that_hangs() {
    let (sink, script, found) = scripted();
    let audit = Audit::with(sink).unwrap();
    // One may be with the sink already.
    for number in 0..QUEUE + 101 {
        audit.tell(stopped(&number.to_string()));
    }
    assert!((100..=101).contains(&audit.lost()), "{}", audit.lost());
    let lost = audit.lost();
    for _ in 0..QUEUE + 3 {
        script.send(Ok(())).unwrap();
    }
    drop(script);
    let total = QUEUE + 101 - usize::try_from(lost).unwrap() + 1;
    let kept: Vec<_> = found.iter().take(total).collect();
    assert!(kept.contains(&lost.to_string()), "the gap is told");
}

#[test]
fn the_journal_gets_each_member_as_a_field_that_no_text_can_break_out_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journald = UnixDatagram::bind(&path).unwrap();
    let audit = Audit::with(journal::Journal::open(&path).unwrap()).unwrap();
    audit.tell(attached("evil\nPRIORITY=0\nNBD_PROXY_USER=root"));
    audit.tell(refused("in use"));
    let fields = receive(&journald);
    let field = |name: &str| {
        let mut values = fields.iter().filter(|(field, _)| field == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} comes twice");
        value
    };
    assert_eq!(field("PRIORITY"), Some("6"));
    assert_eq!(field("SYSLOG_IDENTIFIER"), Some("nbd-proxy"));
    assert_eq!(field("NBD_PROXY_EVENT"), Some("attached"));
    assert_eq!(field("NBD_PROXY_USER"), Some("anna"));
    assert_eq!(field("NBD_PROXY_IMAGE_SIZE"), Some("5"));
    assert_eq!(
        field("NBD_PROXY_IMAGE_NAME"),
        Some("evil\nPRIORITY=0\nNBD_PROXY_USER=root")
    );
    assert_eq!(field("NBD_PROXY_DEVICE"), None);
    let message: Value = serde_json::from_str(field("MESSAGE").unwrap()).unwrap();
    assert_eq!(message["device"], json!(null));
    let priority = receive(&journald)
        .into_iter()
        .find(|(name, _)| name == "PRIORITY");
    assert_eq!(priority.unwrap().1, "4");
}

#[test]
fn a_journald_that_was_started_again_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let first = UnixDatagram::bind(&path).unwrap();
    let audit = Audit::with(journal::Journal::open(&path).unwrap()).unwrap();
    drop(first);
    fs::remove_file(&path).unwrap();
    let second = UnixDatagram::bind(&path).unwrap();
    audit.tell(stopped("again"));
    assert!(receive(&second).contains(&("NBD_PROXY_REASON".into(), "again".into())));
}

/// The fields of the next datagram, as journald reads them.
fn receive(journald: &UnixDatagram) -> Vec<(String, String)> {
    journald
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut buffer = vec![0; 1 << 16];
    let length = journal::uninterrupted(|| journald.recv(&mut buffer)).unwrap();
    let mut rest = &buffer[..length];
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let (length, text) = rest[end + 1..].split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        fields.push((name, String::from_utf8(text[..length].to_vec()).unwrap()));
        assert_eq!(text[length], b'\n');
        rest = &text[length + 1..];
    }
    fields
}
