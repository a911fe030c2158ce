//! A client of a socket device that may do anything: it speaks NBD byte by byte, at any of the doors that a device has.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use crate::{
    certificates::{self, Pair},
    harness::{PATIENCE, uninterrupted},
};

/// Options of the handshake.
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_STARTTLS: u32 = 5;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;
/// Commands of transmission.
pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const TRIM: u16 = 4;

/// Where a device is reached.
pub(super) enum Door {
    /// `unix:`
    Unix(PathBuf),
    /// `tcp:` on loopback, in the clear.
    Tcp(SocketAddr),
    /// `tcp:` with NBD's own TLS, for clients with a certificate.
    Tls {
        address: SocketAddr,
        ca: PathBuf,
        certificate: Pair,
    },
}

impl Door {
    /// A connection on which nothing was said.
    pub(super) fn dial(&self) -> Wire {
        let wire = match self {
            Self::Unix(path) => Wire::Unix(UnixStream::connect(path).unwrap()),
            Self::Tcp(address) | Self::Tls { address, .. } => {
                Wire::Tcp(TcpStream::connect(address).unwrap())
            }
        };
        wire.set_timeouts(PATIENCE);
        wire
    }
}

/// A connection.
pub(super) enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    pub(super) fn set_timeouts(&self, patience: Duration) {
        let patience = Some(patience);
        let tcp = match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(patience).unwrap();
                return stream.set_write_timeout(patience).unwrap();
            }
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        };
        tcp.set_read_timeout(patience).unwrap();
        tcp.set_write_timeout(patience).unwrap();
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// One client.
pub(super) struct Client(pub(super) Wire);

impl Client {
    /// Connects, and takes the greeting.
    pub(super) fn connect(door: &Door) -> Self {
        let mut client = Self(door.dial());
        assert!(client.take(18).unwrap().starts_with(b"NBDMAGICIHAVEOPT"));
        client
    }

    /// Where options are asked for: at a door with TLS inside of it.
    pub(super) fn haggling(door: &Door) -> Self {
        if let Door::Tls { certificate, .. } = door {
            return Self::before_tls(door).secured(door, Some(certificate));
        }
        let mut client = Self::connect(door);
        client.send(&3_u32.to_be_bytes());
        client
    }

    /// NBD_OPT_STARTTLS is acknowledged; nothing of TLS was said.
    pub(super) fn before_tls(door: &Door) -> Self {
        let mut client = Self::connect(door);
        client.send(&3_u32.to_be_bytes());
        client.send(&option(OPT_STARTTLS, b""));
        let reply = client.take(20).unwrap();
        assert_eq!(reply[12..16], 1_u32.to_be_bytes(), "{reply:x?}");
        client
    }

    /// Goes on inside of TLS, showing any certificate or none.
    pub(super) fn secured(self, door: &Door, certificate: Option<&Pair>) -> Self {
        let (Self(Wire::Tcp(stream)), Door::Tls { ca, .. }) = (self, door) else {
            panic!("TLS is spoken already, or never");
        };
        let stream = certificates::secure(stream, ca, certificate);
        Self(Wire::Tls(Box::new(stream)))
    }

    /// In transmission with the export `""`.
    pub(super) fn attached(door: &Door) -> Self {
        let mut client = Self::haggling(door);
        client.ask_for(OPT_GO, &[0; 6]);
        client
    }

    /// Asks for an option; the data of all replies up to the acknowledgement.
    pub(super) fn ask_for(&mut self, code: u32, data: &[u8]) -> Vec<Vec<u8>> {
        self.send(&option(code, data));
        let mut replies = Vec::new();
        loop {
            let head = self.take(20).unwrap();
            let length = u32::from_be_bytes(head[16..].try_into().unwrap());
            replies.push(self.take(length as usize).unwrap());
            assert!(head[12] & 0x80 == 0, "an error: {head:x?}");
            if head[12..16] == 1_u32.to_be_bytes() {
                return replies;
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
        self.0.set_timeouts(Duration::from_secs(10));
        let mut room = [0; 4096];
        while uninterrupted(|| self.0.read(&mut room)).is_ok_and(|count| count > 0) {}
        self.0.set_timeouts(Duration::from_millis(1));
        let ended = match uninterrupted(|| self.0.read(&mut room)) {
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
