use std::{
    io::{self, Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use nbd::{
    Command, Export, Failure, Payload, Reply,
    server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, Transmission},
    wire::{Errno, TransmissionFlags},
};

use crate::read_some;

/// How a page behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// As it should.
    Serves,
    /// It takes READs, and never answers one.
    Silent,
    /// Its link reads nothing any more once the handshake is done.
    Deaf,
}

/// Serves an image as a browser's page does.
pub(crate) struct Page {
    input: Arc<Mutex<Option<Box<dyn Write + Send>>>>,
    /// The longest READ that came, in bytes.
    longest: Arc<AtomicU64>,
    /// Bytes of replies, headers included, that were asked for and not given.
    outstanding: Arc<AtomicU64>,
}

impl Page {
    /// `from` is the program's output, `to` its input.
    pub(crate) fn serve<R, W>(image: Bytes, behaviour: Behaviour, from: R, to: W) -> Self
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let page = Self {
            input: Arc::new(Mutex::new(Some(Box::new(to)))),
            longest: Arc::default(),
            outstanding: Arc::default(),
        };
        let server = Server {
            image,
            behaviour,
            from,
            input: Arc::clone(&page.input),
            longest: Arc::clone(&page.longest),
            outstanding: Arc::clone(&page.outstanding),
        };
        // It ends with the program, or when it is closed.
        thread::spawn(move || server.run());
        page
    }

    /// Closes the program's input.
    pub(crate) fn close(&self) {
        *self.input.lock().unwrap() = None;
    }

    pub(crate) fn longest_read(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }
}

struct Server<R> {
    image: Bytes,
    behaviour: Behaviour,
    from: R,
    input: Arc<Mutex<Option<Box<dyn Write + Send>>>>,
    longest: Arc<AtomicU64>,
    outstanding: Arc<AtomicU64>,
}

impl<R: Read> Server<R> {
    fn run(mut self) -> io::Result<()> {
        let Some(mut transmission) = self.shake_hands()? else {
            return Ok(());
        };
        if self.behaviour == Behaviour::Deaf {
            // Its end of the pipe stays open all the same.
            loop {
                thread::park();
            }
        }
        loop {
            while let Some(incoming) = transmission.poll_request().map_err(io::Error::other)? {
                if incoming == Incoming::Disconnect {
                    return Ok(());
                }
                self.answer(&mut transmission, incoming)?;
            }
            transmission.handle_input(read_some(&mut self.from)?);
        }
    }

    fn write(&self, data: &[u8]) -> io::Result<()> {
        match &mut *self.input.lock().unwrap() {
            Some(input) => input.write_all(data),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn shake_hands(&mut self) -> io::Result<Option<Transmission>> {
        let export = Export {
            name: String::new(),
            description: None,
            size: self.image.len() as u64,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
            block_sizes: None,
        };
        let mut handshake = Handshake::new(vec![export], HandshakeLimits::default());
        loop {
            while let Some(output) = handshake.poll_output() {
                self.write(&output)?;
            }
            match handshake.poll_event() {
                Some(HandshakeEvent::Transmission { transmission, .. }) => {
                    return Ok(Some(transmission));
                }
                Some(HandshakeEvent::Aborted | HandshakeEvent::StartTls(_)) => return Ok(None),
                None => handshake
                    .handle_input(read_some(&mut self.from)?)
                    .map_err(io::Error::other)?,
            }
        }
    }

    fn answer(&self, transmission: &mut Transmission, incoming: Incoming) -> io::Result<()> {
        let mut out = Vec::new();
        match incoming {
            Incoming::Disconnect => {}
            Incoming::Refused { reply_to, failure } => {
                transmission.reply(reply_to, Err(failure), &mut out);
            }
            Incoming::Request {
                reply_to,
                command: Command::Read { offset, length },
                ..
            } => {
                self.longest.fetch_max(length.into(), Ordering::Relaxed);
                if self.behaviour == Behaviour::Silent {
                    self.outstanding
                        .fetch_add(u64::from(length) + 16, Ordering::Relaxed);
                    return Ok(());
                }
                let start = usize::try_from(offset).unwrap();
                let data = self.image.slice(start..start + length as usize);
                transmission.reply(reply_to, Ok(Reply::Data(Payload::from(data))), &mut out);
            }
            Incoming::Request { reply_to, .. } => {
                transmission.reply(reply_to, Err(Failure::from(Errno::EINVAL)), &mut out);
            }
        }
        out.iter().try_for_each(|part| self.write(part))
    }
}
