//! A link over standard input and output: raw NBD bytes.
//!
//! Both may be pipes, sockets, terminals or files, and may be shared with others, who would not expect them to become
//! non-blocking. A pipe, which is what websocketd and bmcweb give us, is opened anew: that end is ours alone, and a task
//! moves its bytes. Anything else has a thread with blocking system calls. Nobody waits for the threads: one may hang in
//! a read that nobody answers, the other in a write to a socket that nobody reads.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use bytes::BytesMut;
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe::{OpenOptions, Receiver, Sender},
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{
    Closing, Link, LinkCommand, LinkEvent, LinkKind, Peer,
    events::{self, Sender as Events},
};

/// What the pipe that we read from is to hold, in bytes: a whole burst of replies, so that whoever writes to it does
/// not have to wait. Also the most that a process without privileges may ask for by default.
const PIPE_SIZE: usize = 1 << 20;
/// How much memory input is read into at once, and how little of it is left when there is new, in bytes.
const CHUNK: usize = 64 << 10;
const CHUNK_END: usize = 16 << 10;
/// How many bytes of output are gathered for one write.
const GATHER: usize = 64 << 10;
/// How many bytes may have been read ahead of the attachment; the pipe holds the rest.
const AHEAD: u32 = 256 << 10;

/// What is left to do with a link over standard input and output.
pub(crate) struct Ends {
    events: Events,
    written: oneshot::Receiver<()>,
}

impl Ends {
    /// Lets the link count as closed by its peer, who has asked us to end and may no longer read or write.
    pub(crate) fn hang_up(&self) {
        let events = self.events.clone();
        tokio::spawn(async move { events.send(LinkEvent::Closed(Closing::Clean)).await });
    }

    /// Waits until everything was written that can be.
    pub(crate) async fn written(self) {
        let _ = self.written.await;
    }
}

/// Makes standard input and output a link.
pub(crate) fn open() -> io::Result<(Link, Ends)> {
    enlarge_pipe(rustix::stdio::stdin());
    let (events, inbox) = events::queue(AHEAD);
    let (outbox, commands) = mpsc::unbounded_channel();
    let (done, written) = oneshot::channel();
    begin_reading(events.clone())?;
    begin_writing(commands, events.clone(), done)?;
    let link = Link {
        kind: LinkKind::Plain,
        events: inbox,
        commands: outbox,
        peer: Peer {
            from: "standard input".into(),
            ..Peer::default()
        },
    };
    Ok((link, Ends { events, written }))
}

fn begin_reading(events: Events) -> io::Result<()> {
    let stdin = rustix::stdio::stdin();
    if let Some(path) = path_of_pipe(stdin)
        && let Ok(pipe) = OpenOptions::new().open_receiver(path)
    {
        tokio::spawn(receive(pipe, events));
        return Ok(());
    }
    let runtime = Handle::current();
    let thread = thread::Builder::new().name("stdin".into());
    thread
        .spawn(move || read(stdin, &events, &runtime))
        .map(drop)
}

fn begin_writing(
    commands: mpsc::UnboundedReceiver<LinkCommand>,
    events: Events,
    done: oneshot::Sender<()>,
) -> io::Result<()> {
    let stdout = rustix::stdio::stdout();
    if let Some(path) = path_of_pipe(stdout)
        && let Ok(pipe) = OpenOptions::new().open_sender(path)
    {
        tokio::spawn(async move {
            let closing = send(pipe, commands).await;
            let _ = done.send(());
            if let Some(closing) = closing {
                let _ = events.send(LinkEvent::Closed(closing)).await;
            }
        });
        return Ok(());
    }
    let runtime = Handle::current();
    let work = move || {
        let closing = write(stdout, commands);
        let _ = done.send(());
        if let Some(closing) = closing {
            let _ = runtime.block_on(events.send(LinkEvent::Closed(closing)));
        }
    };
    let thread = thread::Builder::new().name("stdout".into());
    thread.spawn(work).map(drop)
}

/// Where a pipe can be opened anew (proc_pid_fd(5)). None: it is none.
fn path_of_pipe(fd: impl AsFd) -> Option<String> {
    let is_pipe = rustix::pipe::fcntl_getpipe_size(&fd).is_ok();
    is_pipe.then(|| format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// As far as the system allows; what is not a pipe stays as it is.
fn enlarge_pipe(fd: impl AsFd) {
    let mut size = PIPE_SIZE;
    while rustix::pipe::fcntl_getpipe_size(&fd).is_ok_and(|now| now < size) {
        if rustix::pipe::fcntl_setpipe_size(&fd, size).is_ok() {
            return;
        }
        size /= 2;
    }
}

/// Reads until the end of file, as fast as bytes come.
async fn receive(mut pipe: Receiver, events: Events) {
    let mut room = BytesMut::new();
    let closing = loop {
        if room.capacity() < CHUNK_END {
            room.reserve(CHUNK);
        }
        match pipe.read_buf(&mut room).await {
            Ok(0) => break Closing::Clean,
            Ok(_) => {
                let data = room.split().freeze();
                if events.send(LinkEvent::Data(data)).await.is_err() {
                    return;
                }
            }
            Err(error) => break unreadable(&error),
        }
    };
    let _ = events.send(LinkEvent::Closed(closing)).await;
}

fn unreadable(error: &io::Error) -> Closing {
    Closing::Lost(format!("can't read standard input: {error}"))
}

/// The same with system calls that may block.
fn read(fd: impl AsFd, events: &Events, runtime: &Handle) {
    let mut room = BytesMut::new();
    let closing = loop {
        if room.len() < CHUNK_END {
            room = BytesMut::zeroed(CHUNK);
        }
        match rustix::io::read(&fd, &mut room[..]) {
            Ok(0) => break Closing::Clean,
            Ok(count) => {
                let data = room.split_to(count).freeze();
                if runtime
                    .block_on(events.send(LinkEvent::Data(data)))
                    .is_err()
                {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_until(&fd, PollFlags::IN),
            Err(error) => break unreadable(&error.into()),
        }
    };
    let _ = runtime.block_on(events.send(LinkEvent::Closed(closing)));
}

/// Writes until the link is to be closed. Tells when it can't.
async fn send(
    mut pipe: Sender,
    mut commands: mpsc::UnboundedReceiver<LinkCommand>,
) -> Option<Closing> {
    let mut output = Gathered::default();
    while let Some(command) = commands.recv().await {
        output.gather(command, &mut commands);
        if let Err(error) = pipe.write_all(&output.bytes).await {
            return Some(unwritable(&error));
        }
        if output.is_last {
            return None;
        }
    }
    None
}

/// The same with system calls that may block.
fn write(fd: impl AsFd, mut commands: mpsc::UnboundedReceiver<LinkCommand>) -> Option<Closing> {
    let mut output = Gathered::default();
    while let Some(command) = commands.blocking_recv() {
        output.gather(command, &mut commands);
        if let Err(error) = write_all(&fd, &output.bytes) {
            return Some(unwritable(&error.into()));
        }
        if output.is_last {
            return None;
        }
    }
    None
}

fn unwritable(error: &io::Error) -> Closing {
    match error.kind() {
        // The reader of a pipe is gone: that is how a peer closes it.
        io::ErrorKind::BrokenPipe => Closing::Clean,
        _ => Closing::Lost(format!("can't write to standard output: {error}")),
    }
}

/// What is written at once.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Nothing is to follow.
    is_last: bool,
}

impl Gathered {
    /// `command`, and what has come behind it.
    fn gather(
        &mut self,
        command: LinkCommand,
        commands: &mut mpsc::UnboundedReceiver<LinkCommand>,
    ) {
        self.bytes.clear();
        let mut next = Some(command);
        while let Some(command) = next {
            match command {
                LinkCommand::Data(data) => self.bytes.extend_from_slice(&data),
                LinkCommand::Text(_) | LinkCommand::Trust => {}
                LinkCommand::Close { .. } | LinkCommand::Cut { .. } => self.is_last = true,
            }
            next = match self.is_last || self.bytes.len() >= GATHER {
                true => None,
                false => commands.try_recv().ok(),
            };
        }
    }
}

fn write_all(fd: impl AsFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(&fd, data) {
            Ok(count) => data = &data[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_until(&fd, PollFlags::OUT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// For those who were given a non-blocking end.
fn wait_until(fd: impl AsFd, readiness: PollFlags) {
    let mut fds = [PollFd::new(&fd, readiness)];
    // Woken early or not: whoever waits tries again.
    let _ = rustix::event::poll(&mut fds, None);
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use bytes::Bytes;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn nonblocking_pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn a_pipe_is_enlarged_and_anything_else_left_alone() {
        let (reader, _writer) = nonblocking_pipe();
        enlarge_pipe(&reader);
        assert_eq!(
            rustix::pipe::fcntl_getpipe_size(&reader).unwrap(),
            PIPE_SIZE
        );
        enlarge_pipe(std::fs::File::open("/dev/null").unwrap());
    }

    #[tokio::test]
    async fn non_blocking_ends_are_waited_for_and_carry_everything_in_order() {
        let (reader, writer) = nonblocking_pipe();
        let (commands, outbox) = mpsc::unbounded_channel();
        let (events, mut inbox) = events::queue(AHEAD);
        let sent: Bytes = (0..3 << 20)
            .map(|i: u32| i.to_le_bytes()[i as usize % 4])
            .collect();
        for part in sent.chunks(100_000) {
            commands
                .send(LinkCommand::Data(sent.slice_ref(part)))
                .unwrap();
        }
        commands
            .send(LinkCommand::Close {
                code: 1000,
                reason: String::new(),
            })
            .unwrap();
        let writing = thread::spawn(move || assert_eq!(write(writer, outbox), None));
        let runtime = Handle::current();
        let reading = thread::spawn(move || read(reader, &events, &runtime));
        let mut received = Vec::new();
        let closing = loop {
            match inbox.recv().await.unwrap() {
                LinkEvent::Data(data) => received.extend_from_slice(&data),
                LinkEvent::Closed(closing) => break closing,
                other => panic!("{other:?}"),
            }
        };
        assert!(received == sent && closing == Closing::Clean);
        writing.join().unwrap();
        reading.join().unwrap();
    }

    #[tokio::test]
    async fn a_pipe_is_opened_anew_and_carries_everything_in_order() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let own_reader = OpenOptions::new().open_receiver(path_of_pipe(&reader).unwrap());
        let own_writer = OpenOptions::new().open_sender(path_of_pipe(&writer).unwrap());
        let (commands, outbox) = mpsc::unbounded_channel();
        let (events, mut inbox) = events::queue(AHEAD);
        tokio::spawn(receive(own_reader.unwrap(), events));
        let sending = tokio::spawn(send(own_writer.unwrap(), outbox));
        let sent: Bytes = (0..3 << 20)
            .map(|i: u32| i.to_le_bytes()[i as usize % 4])
            .collect();
        for part in sent.chunks(100_000) {
            commands
                .send(LinkCommand::Data(sent.slice_ref(part)))
                .unwrap();
        }
        drop(commands);
        let mut received = Vec::new();
        while received.len() < sent.len() {
            match inbox.recv().await.unwrap() {
                LinkEvent::Data(data) => received.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        assert!(received == sent);
        assert_eq!(sending.await.unwrap(), None);
        let others = rustix::fs::fcntl_getfl(&reader).unwrap();
        assert!(!others.contains(rustix::fs::OFlags::NONBLOCK));
        // Whoever else has the writing end open keeps the link.
        let next = tokio::spawn(async move { inbox.recv().await });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(writer);
        let closed = next.await.unwrap();
        assert!(matches!(closed, Some(LinkEvent::Closed(Closing::Clean))));
    }

    #[test]
    fn a_peer_that_no_longer_reads_has_closed_the_link() {
        let (reader, writer) = nonblocking_pipe();
        drop(reader);
        let (commands, outbox) = mpsc::unbounded_channel();
        commands
            .send(LinkCommand::Data(Bytes::from_static(b"x")))
            .unwrap();
        assert_eq!(write(writer, outbox), Some(Closing::Clean));
    }
}
