//! A volume and who serves its image, joined in memory, for callgrind: `reads PATTERN REQUESTS` makes so many reads.
//! What `bench/instructions.py` counts is one such run less another with fewer requests.
//!
//! PATTERN is `hit` (4 KiB that are in memory), `miss` (4 KiB anywhere) or `row` (64 KiB after 64 KiB, asked for ahead).

use std::{
    error::Error,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, Transmission};
use nbd::wire::{CommandFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Payload, Reply};
use nbd_session::control::PageMessage;
use nbd_session::{ImageInfo, LinkId, LinkKind, Output, RequestId, Session, SessionConfig, Volume};

/// Of the image, in bytes.
const SIZE: u64 = 1 << 30;
/// Of what may be in memory.
const CACHE: u64 = 32 << 20;
/// Between two reads.
const PAUSE: Duration = Duration::from_micros(50);

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let mut word = || words.next().ok_or("PATTERN and REQUESTS are to be given");
    let pattern = word()?;
    let requests: u64 = word()?.parse()?;
    let mut joined = Joined::new()?;
    for number in 0..requests {
        let (offset, length) = match pattern.as_str() {
            "hit" => (0, 4096),
            "miss" => (
                number.wrapping_mul(2_654_435_769) % (SIZE / 4096) * 4096,
                4096,
            ),
            "row" => (number * 65_536 % SIZE, 65_536),
            _ => return Err("PATTERN is hit, miss or row".into()),
        };
        joined.read(number, offset, length)?;
    }
    Ok(())
}

struct Joined {
    volume: Volume,
    link: LinkId,
    now: Instant,
    server: Transmission,
    /// What every read gets a part of.
    bytes: Bytes,
}

impl Joined {
    /// A volume whose first link serves a read-only image.
    fn new() -> Result<Self, Box<dyn Error>> {
        let now = Instant::now();
        let mut volume = Volume::new(Session::new(SessionConfig::default())).with_cache(CACHE);
        let link = volume.open_link(now, LinkKind::V1);
        let image = ImageInfo {
            name: "disk".into(),
            size: SIZE,
            modified: None,
        };
        volume.handle_text(now, link, &PageMessage::Image(image).encode());
        let server = greet(&mut volume, link, now)?;
        Ok(Self {
            volume,
            link,
            now,
            server,
            bytes: Bytes::from(vec![7; 4 << 20]),
        })
    }

    /// One READ, from the request until nothing more is asked for.
    fn read(&mut self, number: u64, offset: u64, length: u32) -> Result<(), Box<dyn Error>> {
        self.now += PAUSE;
        let command = Command::Read { offset, length };
        self.volume
            .submit(self.now, RequestId(number), CommandFlags::empty(), command);
        let mut answered = false;
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { data, .. } => self.serve(data)?,
                Output::Complete { result, .. } => answered = result.is_ok(),
                _ => {}
            }
        }
        match answered {
            true => Ok(()),
            false => Err(format!("no answer to {offset}+{length}").into()),
        }
    }

    /// The server's side.
    fn serve(&mut self, data: Bytes) -> Result<(), Box<dyn Error>> {
        self.server.handle_input(data);
        let mut sent = Vec::new();
        while let Some(incoming) = self.server.poll_request()? {
            let Incoming::Request {
                reply_to, command, ..
            } = incoming
            else {
                return Err("a request that can't be answered".into());
            };
            let length = usize::try_from(command.length())?;
            let reply = Reply::Data(Payload::from(self.bytes.slice(..length)));
            self.server.reply(reply_to, Ok(reply), &mut sent);
        }
        for piece in sent {
            self.volume.handle_data(self.now, self.link, piece);
        }
        Ok(())
    }
}

/// The handshake.
fn greet(volume: &mut Volume, link: LinkId, now: Instant) -> Result<Transmission, Box<dyn Error>> {
    let export = Export {
        name: "disk".into(),
        description: None,
        size: SIZE,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        block_sizes: Some(BlockSizes::default()),
    };
    let mut server = Handshake::new(vec![export], HandshakeLimits::default());
    loop {
        while let Some(bytes) = server.poll_output() {
            volume.handle_data(now, link, bytes);
        }
        if let Some(HandshakeEvent::Transmission { transmission, .. }) = server.poll_event() {
            return Ok(transmission);
        }
        match volume.poll_output() {
            Some(Output::Send { data, .. }) => server.handle_input(data)?,
            Some(_) => {}
            None => return Err("the volume does not agree".into()),
        }
    }
}
