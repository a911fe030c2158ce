//! A client of a socket device that may do anything: it speaks NBD byte by byte.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::harness::PATIENCE;

/// Options of the handshake.
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_LIST: u32 = 3;
/// Commands of transmission.
pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const TRIM: u16 = 4;

/// One connection.
pub(super) struct Client(pub(super) UnixStream);

impl Client {
    /// Connects, and takes the greeting.
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self(stream);
        assert!(client.take(18).unwrap().starts_with(b"NBDMAGICIHAVEOPT"));
        client
    }

    /// In transmission with the export `""`.
    pub(super) fn attached(path: &Path) -> Self {
        let mut client = Self::connect(path);
        client.send(&3_u32.to_be_bytes());
        client.send(&option(OPT_GO, &[0; 6]));
        loop {
            let head = client.take(20).unwrap();
            let length = u32::from_be_bytes(head[16..].try_into().unwrap());
            client.take(length as usize).unwrap();
            if head[12..16] == 1_u32.to_be_bytes() {
                return client;
            }
        }
    }

    /// False where nobody takes it any more.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// So many bytes; None at the end of the connection.
    pub(super) fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing comes"),
            Err(_) => None,
        }
    }

    /// Asks for something, and gives the error of the simple reply: 0 is success.
    pub(super) fn ask(&mut self, command: u16, offset: u64, length: u32) -> Option<u32> {
        self.send(&request(command, 7, offset, length));
        let reply = self.take(16)?;
        assert!(reply.starts_with(&0x6744_6698_u32.to_be_bytes()));
        assert!(reply.ends_with(&7_u64.to_be_bytes()));
        Some(u32::from_be_bytes(reply[4..8].try_into().unwrap()))
    }

    /// The server hangs up; whatever it says before is of no interest.
    pub(super) fn is_hung_up(&mut self) {
        // Sooner than the time that a handshake has.
        self.0
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut room = [0; 4096];
        while self.0.read(&mut room).is_ok_and(|count| count > 0) {}
        self.0
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let ended = match self.0.read(&mut room) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        assert!(ended, "still connected");
    }
}

/// An option and its data.
pub(super) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&option_head(code, length), data].concat()
}

/// The head of an option, which may promise anything.
pub(super) fn option_head(code: u32, length: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &code.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// A request's header.
pub(super) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &[0, 0],
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}
