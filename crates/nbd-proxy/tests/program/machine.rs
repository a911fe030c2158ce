use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
};

use nbd::{
    Command, Export,
    client::{Handshake, HandshakeError, HandshakeOptions, ReplyEvent, Transmission},
    wire::CommandFlags,
};

use crate::{PATIENCE, read_some};

/// A client of the device.
pub(crate) struct Machine {
    stream: UnixStream,
    transmission: Transmission,
    pub(crate) export: Export,
    next: u64,
}

impl Machine {
    pub(crate) fn new(stream: UnixStream, export: &str) -> Self {
        Self::choose(stream, export).unwrap()
    }

    /// Asks for an export by name.
    pub(crate) fn choose(mut stream: UnixStream, export: &str) -> Result<Self, HandshakeError> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let options = HandshakeOptions {
            export: export.into(),
            structured_replies: true,
            base_allocation: true,
        };
        let mut handshake = Handshake::new(options);
        loop {
            while let Some(output) = handshake.poll_output() {
                stream.write_all(&output).unwrap();
            }
            if let Some((export, transmission)) = handshake.finish() {
                return Ok(Self {
                    stream,
                    transmission,
                    export,
                    next: 0,
                });
            }
            handshake.handle_input(read_some(&mut stream).unwrap())?;
        }
    }

    /// Sends a READ and does not wait for the answer.
    pub(crate) fn ask(&mut self, offset: u64, length: u32) -> u64 {
        let (cookie, mut out) = (self.next, Vec::new());
        self.next += 1;
        let command = Command::Read { offset, length };
        self.transmission
            .request(cookie, CommandFlags::empty(), &command, &mut out)
            .unwrap();
        self.stream.write_all(&out.concat()).unwrap();
        cookie
    }

    /// Waits for the answer to a READ at `start`. A connection that is closed is an error as well.
    pub(crate) fn answer(&mut self, cookie: u64, start: u64, length: u32) -> io::Result<Vec<u8>> {
        let mut content = vec![0xee; length as usize];
        loop {
            while let Some(event) = self.transmission.poll_reply().map_err(io::Error::other)? {
                match event {
                    ReplyEvent::Data {
                        cookie: of,
                        offset,
                        data,
                        ..
                    } if of == cookie => {
                        let at = usize::try_from(offset - start).unwrap();
                        content[at..at + data.len()].copy_from_slice(&data);
                    }
                    ReplyEvent::Hole {
                        cookie: of,
                        offset,
                        length,
                    } if of == cookie => {
                        let at = usize::try_from(offset - start).unwrap();
                        content[at..at + length as usize].fill(0);
                    }
                    ReplyEvent::Done { cookie: of, result } if of == cookie => {
                        return result.map(|()| content).map_err(io::Error::other);
                    }
                    _ => {}
                }
            }
            self.transmission.handle_input(read_some(&mut self.stream)?);
        }
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        let cookie = self.ask(offset, length);
        self.answer(cookie, offset, length)
    }

    /// Says goodbye, and waits until the server has closed.
    pub(crate) fn disconnect(mut self) {
        let mut out = Vec::new();
        self.transmission.disconnect(&mut out);
        self.stream.write_all(&out.concat()).unwrap();
        assert!(self.is_dropped());
    }

    /// Sends anything at all.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Whether the server has closed the connection, be it in anger.
    pub(crate) fn is_dropped(&mut self) -> bool {
        let gone = |error: &io::Error| error.kind() != io::ErrorKind::WouldBlock;
        read_some(&mut self.stream).is_err_and(|error| gone(&error))
    }
}
