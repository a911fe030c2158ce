//! Sessions with links that come and go, and ejects; on Unix sockets, which need no privileges.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use bytes::Bytes;
use nbd::{
    Command, Export, Failure, Payload, Reply,
    client::{HandshakeOptions, ReplyEvent},
    server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming},
    wire::{CommandFlags, Errno, TransmissionFlags},
};
use nbd_session::{Closing, LinkKind};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};

use super::*;
use crate::{
    config::Strictness,
    link::{self, LinkCommand, LinkEvent, events},
};

const SIZE: usize = 64 << 10;
/// Reads up to this length need no turn, in bytes.
const SHORT: u32 = 16 << 10;

/// A session with a folder of its own.
struct Rig {
    folder: TempDir,
    attachment: Attachment,
}

impl Rig {
    /// `hook` is the script of the state hook; empty for none.
    async fn new(hook: &str) -> Self {
        Self::held_for(300, hook).await
    }

    /// Of a session that is held for so many seconds.
    async fn held_for(hold: u32, hook: &str) -> Self {
        Self::sharing(None, hold, hook).await
    }

    async fn sharing(turns: Option<Turns>, hold: u32, hook: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        if !hook.is_empty() {
            let script = format!(
                "#!/bin/sh\ncd {}\necho $1 >>calls\n{hook}\n",
                folder.path().display()
            );
            // A file that this process has open for writing can't be executed, nor while a fork of another test has.
            let copied = std::process::Command::new("sh")
                .args(["-c", "printf %s \"$1\" >\"$2\"", "sh", &script])
                .arg(path("state"))
                .status();
            assert!(copied.unwrap().success());
            std::fs::set_permissions(path("state"), std::fs::Permissions::from_mode(0o755))
                .unwrap();
        }
        let text = format!(
            r#"{{"configurations": {{"0": {{"device": "unix:{}", "state-hook": "{}", "hold": {hold}}}}}}}"#,
            path("disk").display(),
            path("state").display()
        );
        std::fs::write(path("config.json"), text).unwrap();
        let (config, _) = Config::load(&path("config.json"), Strictness::Strict).unwrap();
        let claim = Claim::acquire(&config.configurations[0], folder.path())
            .await
            .unwrap();
        let usual = Settings::for_serve(
            &config,
            &config.configurations[0],
            folder.path().into(),
            Audit::off(),
        );
        let settings = Settings { turns, ..usual };
        let attachment = Attachment::start(settings, claim, "0".repeat(32));
        Self { folder, attachment }
    }

    async fn attached(hook: &str) -> (Self, Page) {
        let rig = Self::new(hook).await;
        let page = rig.serve(SIZE);
        rig.reach(|status| status.phase == Phase::Attached).await;
        (rig, page)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.path("calls"))
            .unwrap_or_default()
            .replace('\n', " ")
    }

    fn serve(&self, size: usize) -> Page {
        self.serve_as(
            size,
            TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        )
    }

    fn serve_as(&self, size: usize, flags: TransmissionFlags) -> Page {
        let (link, page) = Page::new(size, flags);
        self.attachment.link(link);
        page
    }

    async fn reach(&self, condition: impl FnMut(&Status) -> bool) -> Status {
        self.attachment
            .status()
            .wait_for(condition)
            .await
            .unwrap()
            .clone()
    }

    /// Waits until the state hook was called.
    async fn begun(&self) {
        while self.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.path("disk")).await.unwrap()).await
    }
}

/// Serves an image of zeroes over a link.
struct Page {
    events: events::Sender,
    /// Gives the link's close code when it ends.
    task: JoinHandle<Option<u16>>,
}

impl Page {
    fn new(size: usize, flags: TransmissionFlags) -> (Link, Self) {
        Self::with(size, flags, None)
    }

    /// One that never answers long reads, but tells of each.
    fn hanging(size: usize) -> (Link, Self, mpsc::UnboundedReceiver<()>) {
        let (unanswered, told) = mpsc::unbounded_channel();
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        let (link, page) = Self::with(size, flags, Some(unanswered));
        (link, page, told)
    }

    fn with(
        size: usize,
        flags: TransmissionFlags,
        unanswered: Option<mpsc::UnboundedSender<()>>,
    ) -> (Link, Self) {
        let (events, inbox) = events::queue(1 << 20);
        let (outbox, commands) = mpsc::unbounded_channel();
        let serving = serve_zeroes(size, flags, events.clone(), commands, unanswered);
        let task = tokio::spawn(serving);
        let link = Link {
            kind: LinkKind::Plain,
            events: inbox,
            commands: outbox,
            peer: Peer {
                user: "me".into(),
                from: "here".into(),
                session: None,
            },
        };
        (link, Self { events, task })
    }

    async fn close(&self, closing: Closing) {
        self.task.abort();
        self.events.send(LinkEvent::Closed(closing)).await.unwrap();
    }
}

async fn serve_zeroes(
    size: usize,
    flags: TransmissionFlags,
    events: events::Sender,
    mut commands: mpsc::UnboundedReceiver<LinkCommand>,
    unanswered: Option<mpsc::UnboundedSender<()>>,
) -> Option<u16> {
    let export = Export {
        name: String::new(),
        description: None,
        size: size as u64,
        flags,
        block_sizes: None,
    };
    let mut handshake = Handshake::new(vec![export], HandshakeLimits::default());
    let mut transmission = None;
    loop {
        let mut out: Vec<Bytes> = std::iter::from_fn(|| handshake.poll_output()).collect();
        if let Some(HandshakeEvent::Transmission {
            transmission: begun,
            ..
        }) = handshake.poll_event()
        {
            transmission = Some(begun);
        }
        while let Some(incoming) = transmission
            .as_mut()
            .and_then(|begun| begun.poll_request().unwrap())
        {
            let (reply_to, result) = match incoming {
                Incoming::Request {
                    command: Command::Read { length, .. },
                    ..
                } if length > SHORT && unanswered.is_some() => {
                    unanswered.as_ref()?.send(()).ok()?;
                    continue;
                }
                Incoming::Request {
                    reply_to,
                    command: Command::Read { length, .. },
                    ..
                } => (reply_to, Ok(Reply::Data(Payload::zeros(length as usize)))),
                Incoming::Request {
                    reply_to,
                    command: Command::Write { .. } | Command::WriteZeroes { .. },
                    ..
                } => (reply_to, Ok(Reply::Done)),
                Incoming::Request { reply_to, .. } => (reply_to, Err(Failure::from(Errno::EINVAL))),
                Incoming::Refused { reply_to, failure } => (reply_to, Err(failure)),
                Incoming::Disconnect => break,
            };
            transmission
                .as_mut()
                .unwrap()
                .reply(reply_to, result, &mut out);
        }
        for data in out {
            events.send(LinkEvent::Data(data)).await.ok()?;
        }
        match commands.recv().await? {
            LinkCommand::Data(data) => match &mut transmission {
                Some(transmission) => transmission.handle_input(data),
                None => handshake.handle_input(data).unwrap(),
            },
            LinkCommand::Text(_) | LinkCommand::Trust => {}
            LinkCommand::Close { code, .. } | LinkCommand::Cut { code, .. } => return Some(code),
        }
    }
}

/// A client of the device.
struct Client {
    stream: UnixStream,
    transmission: nbd::client::Transmission,
}

impl Client {
    async fn new(mut stream: UnixStream) -> Self {
        let mut handshake = nbd::client::Handshake::new(HandshakeOptions::default());
        loop {
            while let Some(output) = handshake.poll_output() {
                stream.write_all(&output).await.unwrap();
            }
            if let Some((_, transmission)) = handshake.finish() {
                return Self {
                    stream,
                    transmission,
                };
            }
            handshake
                .handle_input(receive(&mut stream).await.unwrap())
                .unwrap();
        }
    }

    /// Reads one byte; whether that succeeds.
    async fn read(&mut self) -> bool {
        let command = Command::Read {
            offset: 0,
            length: 1,
        };
        self.ask(command).await
    }

    /// Whether a request succeeds.
    async fn ask(&mut self, command: Command) -> bool {
        let mut out = Vec::new();
        self.transmission
            .request(0, CommandFlags::empty(), &command, &mut out)
            .unwrap();
        self.stream.write_all(&out.concat()).await.unwrap();
        loop {
            while let Some(event) = self.transmission.poll_reply().unwrap() {
                if let ReplyEvent::Done { result, .. } = event {
                    return result.is_ok();
                }
            }
            match receive(&mut self.stream).await {
                Some(input) => self.transmission.handle_input(input),
                None => return false,
            }
        }
    }
}

/// None at the end of the connection.
async fn receive(stream: &mut UnixStream) -> Option<Bytes> {
    let mut room = vec![0; 4096];
    let count = stream
        .read(&mut room)
        .await
        .ok()
        .filter(|count| *count > 0)?;
    room.truncate(count);
    Some(room.into())
}

#[tokio::test]
async fn a_lost_link_holds_the_session_and_a_new_one_resumes_it() {
    let (rig, page) = Rig::attached("").await;
    let mut client = rig.connect().await;
    page.close(Closing::Lost("the network is down".into()))
        .await;
    rig.reach(|status| matches!(status.phase, Phase::Held { .. }))
        .await;
    let waiting = tokio::spawn(async move { client.read().await });
    let _page = rig.serve(SIZE);
    rig.reach(|status| status.phase == Phase::Attached).await;
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn a_link_with_another_image_is_refused_and_the_session_waits_on() {
    let (rig, page) = Rig::attached("").await;
    page.close(Closing::Lost("asleep".into())).await;
    rig.reach(|status| matches!(status.phase, Phase::Held { .. }))
        .await;
    let other = rig.serve(2 * SIZE);
    assert_eq!(
        other.task.await.unwrap(),
        Some(nbd_session::close::OTHER_IMAGE)
    );
    assert!(matches!(
        rig.attachment.status().borrow().phase,
        Phase::Held { .. }
    ));
}

#[tokio::test]
async fn what_was_read_and_what_was_written_or_cleared_is_counted_if_it_succeeded() {
    let rig = Rig::new("").await;
    let writable = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_WRITE_ZEROES;
    let _page = rig.serve_as(SIZE, writable);
    rig.reach(|status| status.phase == Phase::Attached).await;
    let mut client = rig.connect().await;
    let (offset, length) = (512, 1024);
    let data = Payload::zeros(512);
    assert!(client.read().await);
    assert!(client.ask(Command::Write { offset, data }).await);
    assert!(client.ask(Command::WriteZeroes { offset, length }).await);
    let status = rig.reach(|status| status.requests >= 3).await;
    assert_eq!((status.bytes_read, status.bytes_written), (1, 512 + 1024));
}

#[tokio::test]
async fn a_session_that_a_closed_link_ends_is_over_in_order() {
    let (rig, page) = Rig::attached("exit 0").await;
    page.close(Closing::Clean).await;
    assert!(matches!(rig.attachment.ended().await, Outcome::InOrder(_)));
    assert_eq!(rig.calls(), "start stop ");
    assert!(!rig.path("disk").exists());
}

#[tokio::test]
async fn an_eject_is_refused_while_a_client_is_connected_and_nothing_has_changed() {
    let (rig, _page) = Rig::attached("exit 0").await;
    let mut client = rig.connect().await;
    let refused = rig.attachment.eject(false).await;
    assert!(
        matches!(&refused, Err(EjectError::InUse(users)) if users[0].starts_with("connected: process")),
        "{refused:?}"
    );
    assert!(client.read().await);
    assert_eq!(
        (
            rig.calls().as_str(),
            &rig.attachment.status().borrow().phase
        ),
        ("start ", &Phase::Attached)
    );
    drop(client);
    // The device learns of the client's end in its own time.
    while rig.attachment.eject(false).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.calls(), "start stop ");
}

#[tokio::test]
async fn an_eject_by_force_takes_the_device_from_its_clients() {
    let (rig, page) = Rig::attached("").await;
    let mut client = rig.connect().await;
    assert_eq!(rig.attachment.eject(true).await, Ok(Ejected::Free));
    assert_eq!(client.stream.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(page.task.await.unwrap(), Some(nbd_session::close::NORMAL));
    assert!(matches!(rig.attachment.ended().await, Outcome::InOrder(_)));
}

#[tokio::test]
async fn an_eject_by_force_does_not_wait_for_a_page_that_hangs() {
    let (rig, page) = Rig::attached("").await;
    page.task.abort();
    let mut client = rig.connect().await;
    let waiting = tokio::spawn(async move { client.read().await });
    assert_eq!(rig.attachment.eject(true).await, Ok(Ejected::Free));
    assert!(!waiting.await.unwrap());
}

#[tokio::test]
async fn an_eject_by_force_ends_a_start_that_hangs() {
    let rig = Rig::new("test $1 = stop || sleep 600").await;
    let _page = rig.serve(SIZE);
    rig.begun().await;
    assert_eq!(rig.attachment.eject(true).await, Ok(Ejected::Free));
    assert_eq!(rig.calls(), "start stop ");
}

#[tokio::test]
async fn a_hold_that_expires_while_start_runs_ends_it_and_stop_runs() {
    for hold in [0, 1] {
        let rig = Rig::held_for(hold, "test $1 = stop || sleep 600").await;
        let page = rig.serve(SIZE);
        rig.begun().await;
        page.close(Closing::Lost("asleep".into())).await;
        assert!(matches!(rig.attachment.ended().await, Outcome::Failed(_)));
        assert_eq!(rig.calls(), "start stop ");
        assert!(!rig.path("disk").exists());
    }
}

#[tokio::test]
async fn an_eject_that_finds_a_user_after_stop_starts_again() {
    // A client that comes while `stop` runs.
    let hook = "test $1 = start || while ! test -e go; do sleep 0.01; done";
    let (rig, _page) = Rig::attached(hook).await;
    let attachment = rig.attachment.clone();
    let ejecting = tokio::spawn(async move { attachment.eject(false).await });
    rig.reach(|status| status.phase == Phase::Draining).await;
    let mut client = rig.connect().await;
    std::fs::write(rig.path("go"), "").unwrap();
    assert!(matches!(ejecting.await.unwrap(), Err(EjectError::InUse(_))));
    rig.reach(|status| status.phase == Phase::Attached).await;
    assert_eq!(rig.calls(), "start stop start ");
    assert!(client.read().await);
}

#[tokio::test]
async fn a_held_session_is_ejected_and_what_waited_fails() {
    let (rig, page) = Rig::attached("").await;
    let mut client = rig.connect().await;
    page.close(Closing::Lost("gone".into())).await;
    rig.reach(|status| matches!(status.phase, Phase::Held { .. }))
        .await;
    assert!(matches!(
        rig.attachment.eject(false).await,
        Err(EjectError::InUse(_))
    ));
    let waiting = tokio::spawn(async move { client.read().await });
    assert_eq!(rig.attachment.eject(true).await, Ok(Ejected::Free));
    assert!(!waiting.await.unwrap());
}

#[tokio::test]
async fn an_eject_before_there_is_a_device_ends_the_session() {
    let rig = Rig::new("").await;
    assert_eq!(rig.attachment.eject(false).await, Ok(Ejected::Free));
    assert!(matches!(rig.attachment.ended().await, Outcome::InOrder(_)));
    assert_eq!(rig.attachment.eject(false).await, Ok(Ejected::Free));
}

#[tokio::test]
async fn a_link_that_comes_while_the_session_ends_is_told_that_it_is_in_use() {
    let (rig, _page) =
        Rig::attached("test $1 = start || while ! test -e go; do sleep 0.01; done").await;
    rig.attachment.end(EndReason::Shutdown);
    rig.reach(|status| status.phase == Phase::Draining).await;
    let late = rig.serve(SIZE);
    assert_eq!(late.task.await.unwrap(), Some(link::IN_USE));
    std::fs::write(rig.path("go"), "").unwrap();
    rig.attachment.ended().await;
}

#[tokio::test]
async fn a_newer_link_supersedes_the_older() {
    let (rig, older) = Rig::attached("").await;
    let _newer = rig.serve(SIZE);
    assert_eq!(
        older.task.await.unwrap(),
        Some(nbd_session::close::SUPERSEDED)
    );
    assert!(rig.connect().await.read().await);
}

#[tokio::test]
async fn a_session_ends_when_nobody_looks_after_it_any_more() {
    let (Rig { folder, attachment }, page) = Rig::attached("").await;
    let mut status = attachment.status();
    drop(attachment);
    status
        .wait_for(|status| status.phase == Phase::Ended)
        .await
        .unwrap();
    assert_eq!(
        page.task.await.unwrap(),
        Some(nbd_session::close::GOING_AWAY)
    );
    drop(folder);
}

#[tokio::test]
async fn counters_show_what_the_machine_read() {
    let (rig, _page) = Rig::attached("").await;
    let mut client = rig.connect().await;
    for _ in 0..3 {
        assert!(client.read().await);
    }
    let status = rig.reach(|status| status.requests >= 3).await;
    assert_eq!(
        (status.bytes_read, status.size, status.peer.user.as_str()),
        (3, SIZE as u64, "me")
    );
}

#[cfg(feature = "serve")]
#[test]
fn a_session_with_less_memory_takes_no_more_and_its_longest_request_stays_as_it_is() {
    let wanted = Limits::SERVE;
    assert_eq!(wanted.within(wanted.memory()), wanted);
    for mebibytes in [8, 9, 31, 64, 100, 127] {
        let bytes = mebibytes << 20;
        let cut = wanted.within(bytes);
        assert!(cut.memory() <= bytes, "{mebibytes} MiB: {cut:?}");
        assert_eq!(cut.max_request, wanted.max_request);
        assert!(cut.max_in_flight > u64::from(cut.max_request));
        assert!(cut.cache > 0 && cut.device_memory > 0);
    }
}

#[tokio::test]
async fn sessions_whose_pages_hang_do_not_hold_up_the_others() {
    // For two of these reads: whoever waits for its turn must get it.
    let turns = Turns::of(4 * SHORT);
    let long = || Command::Read {
        offset: 0,
        length: 2 * SHORT,
    };
    let mut hanging = Vec::new();
    for _ in 0..8 {
        let rig = Rig::sharing(Some(turns.clone()), 300, "").await;
        let (link, page, mut requests) = Page::hanging(SIZE);
        rig.attachment.link(link);
        rig.reach(|status| status.phase == Phase::Attached).await;
        let mut client = rig.connect().await;
        let reading = tokio::spawn(async move { client.ask(long()).await });
        requests.recv().await.unwrap();
        hanging.push((rig, page, reading));
    }
    let rig = Rig::sharing(Some(turns), 300, "").await;
    let _page = rig.serve(SIZE);
    rig.reach(|status| status.phase == Phase::Attached).await;
    assert!(rig.connect().await.ask(long()).await);
    assert!(hanging.iter().all(|(_, _, reading)| !reading.is_finished()));
}
