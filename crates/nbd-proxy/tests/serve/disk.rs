//! What the machine sees: an NBD client at the socket device.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use bytes::Bytes;
use nbd::{
    Command, Export, Failure,
    client::{Handshake, HandshakeOptions, ReplyEvent, Transmission},
    wire::CommandFlags,
};

use crate::harness::{PATIENCE, uninterrupted};

/// A connected client.
pub(crate) struct Disk {
    stream: UnixStream,
    transmission: Transmission,
    pub(crate) export: Export,
    cookie: u64,
}

impl Disk {
    /// Connects to a socket device.
    pub(crate) fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let options = HandshakeOptions {
            structured_replies: true,
            ..HandshakeOptions::default()
        };
        let mut handshake = Handshake::new(options);
        let (export, transmission) = loop {
            while let Some(output) = handshake.poll_output() {
                stream.write_all(&output).unwrap();
            }
            if let Some(finished) = handshake.finish() {
                break finished;
            }
            let input = receive(&mut stream);
            handshake.handle_input(input).unwrap();
        };
        Self {
            stream,
            transmission,
            export,
            cookie: 0,
        }
    }

    /// Reads a range.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        self.cookie += 1;
        let mut output = Vec::new();
        let command = Command::Read { offset, length };
        self.transmission
            .request(self.cookie, CommandFlags::default(), &command, &mut output)
            .unwrap();
        for part in output {
            self.stream.write_all(&part).unwrap();
        }
        let mut content = vec![0; usize::try_from(length).unwrap()];
        loop {
            while let Some(event) = self.transmission.poll_reply().unwrap() {
                match event {
                    ReplyEvent::Data {
                        offset: at, data, ..
                    } => {
                        let start = usize::try_from(at - offset).unwrap();
                        content[start..start + data.len()].copy_from_slice(&data);
                    }
                    ReplyEvent::Done { result, .. } => return result.map(|()| content),
                    ReplyEvent::Hole { .. } | ReplyEvent::BlockStatus { .. } => {}
                }
            }
            let input = receive(&mut self.stream);
            self.transmission.handle_input(input);
        }
    }

    /// Reads all of it.
    pub(crate) fn read_all(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        let mut at = 0;
        while at < self.export.size {
            let length = u32::try_from(self.export.size - at)
                .unwrap_or(u32::MAX)
                .min(1 << 20);
            content.extend(self.read(at, length).unwrap());
            at += u64::from(length);
        }
        content
    }
}

fn receive(stream: &mut UnixStream) -> Bytes {
    let mut buffer = vec![0; 1 << 16];
    let length = uninterrupted(|| stream.read(&mut buffer)).unwrap();
    assert!(length > 0, "the device closed the connection");
    buffer.truncate(length);
    buffer.into()
}
