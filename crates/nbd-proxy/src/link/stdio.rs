//! A link over standard input and output: raw NBD bytes.
//!
//! Two threads with blocking system calls, since standard input and output may be pipes, sockets, terminals or files,
//! and may be shared with others, who would not expect them to become non-blocking. Nobody waits for the threads:
//! one may hang in a read that nobody answers, the other in a write to a full pipe that nobody reads.

use std::{io, os::fd::AsFd, thread};

use bytes::BytesMut;
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
};
use tokio::sync::{mpsc, oneshot};

use super::{Closing, EVENT_QUEUE, Link, LinkCommand, LinkEvent, LinkKind, Peer};

/// What the pipe that we read from is to hold, in bytes: a whole burst of replies, so that whoever writes to it does
/// not have to wait. Also the most that a process without privileges may ask for by default.
const PIPE_SIZE: usize = 1 << 20;
/// How much memory input is read into at once, and how little of it is left when there is new, in bytes.
const CHUNK: usize = 256 << 10;
const CHUNK_END: usize = 16 << 10;
/// How many bytes of output are gathered for one write.
const GATHER: usize = 64 << 10;

/// What is left to do with a link over standard input and output.
pub(crate) struct Ends {
    events: mpsc::Sender<LinkEvent>,
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
    let (events, inbox) = mpsc::channel(EVENT_QUEUE);
    let (outbox, commands) = mpsc::unbounded_channel();
    let (done, written) = oneshot::channel();
    let (reader_events, writer_events) = (events.clone(), events.clone());
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || read(rustix::stdio::stdin(), &reader_events))?;
    thread::Builder::new()
        .name("stdout".into())
        .spawn(move || {
            let closing = write(rustix::stdio::stdout(), commands);
            let _ = done.send(());
            if let Some(closing) = closing {
                let _ = writer_events.blocking_send(LinkEvent::Closed(closing));
            }
        })?;
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
fn read(fd: impl AsFd, events: &mpsc::Sender<LinkEvent>) {
    let mut room = BytesMut::new();
    let closing = loop {
        if room.len() < CHUNK_END {
            room = BytesMut::zeroed(CHUNK);
        }
        match rustix::io::read(&fd, &mut room[..]) {
            Ok(0) => break Closing::Clean,
            Ok(count) => {
                let data = room.split_to(count).freeze();
                if events.blocking_send(LinkEvent::Data(data)).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_until(&fd, PollFlags::IN),
            Err(error) => {
                break Closing::Lost(format!(
                    "can't read standard input: {}",
                    io::Error::from(error)
                ));
            }
        }
    };
    let _ = events.blocking_send(LinkEvent::Closed(closing));
}

/// Writes until the link is to be closed. Tells when it can't.
fn write(fd: impl AsFd, mut commands: mpsc::UnboundedReceiver<LinkCommand>) -> Option<Closing> {
    let mut gathered = Vec::with_capacity(GATHER);
    while let Some(command) = commands.blocking_recv() {
        let mut next = Some(command);
        let mut last = false;
        while let Some(command) = next {
            match command {
                LinkCommand::Data(data) => gathered.extend_from_slice(&data),
                LinkCommand::Text(_) => {}
                LinkCommand::Close { .. } | LinkCommand::Cut { .. } => last = true,
            }
            next = if last || gathered.len() >= GATHER {
                None
            } else {
                commands.try_recv().ok()
            };
        }
        match write_all(&fd, &gathered) {
            Ok(()) => gathered.clear(),
            // The reader of a pipe is gone: that is how a peer closes it.
            Err(Errno::PIPE) => return Some(Closing::Clean),
            Err(error) => {
                let cause = io::Error::from(error);
                return Some(Closing::Lost(format!(
                    "can't write to standard output: {cause}"
                )));
            }
        }
        if last {
            return None;
        }
    }
    None
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

    #[test]
    fn non_blocking_ends_are_waited_for_and_carry_everything_in_order() {
        let (reader, writer) = nonblocking_pipe();
        let (commands, outbox) = mpsc::unbounded_channel();
        let (events, mut inbox) = mpsc::channel(4);
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
        let reading = thread::spawn(move || read(reader, &events));
        let mut received = Vec::new();
        let closing = loop {
            match inbox.blocking_recv().unwrap() {
                LinkEvent::Data(data) => received.extend_from_slice(&data),
                LinkEvent::Closed(closing) => break closing,
                other => panic!("{other:?}"),
            }
        };
        assert!(received == sent && closing == Closing::Clean);
        writing.join().unwrap();
        reading.join().unwrap();
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
