//! Client and server joined in memory, for callgrind: `joined REQUESTS LENGTH` reads so often so many bytes. What
//! `bench/instructions.py` counts is one such run less another with fewer requests.

use std::error::Error;

use bytes::Bytes;
use nbd::client::{self, HandshakeOptions, ReplyEvent};
use nbd::server::{self, HandshakeEvent, HandshakeLimits, Incoming};
use nbd::wire::{CommandFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Payload, Reply};

/// Of the export, in bytes.
const SIZE: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1);
    let mut number = || numbers.next().ok_or("REQUESTS and LENGTH are to be given");
    let requests: u64 = number()?.parse()?;
    let length: u32 = number()?.parse()?;
    let (mut client, mut server) = connect()?;
    let data = Bytes::from(vec![7; length as usize]);
    for cookie in 0..requests {
        read(&mut client, &mut server, cookie, &data)?;
    }
    Ok(())
}

/// One READ, from the request to the end of its answer.
fn read(
    client: &mut client::Transmission,
    server: &mut server::Transmission,
    cookie: u64,
    data: &Bytes,
) -> Result<(), Box<dyn Error>> {
    let length = u32::try_from(data.len())?;
    let offset = cookie * u64::from(length) % (SIZE / 2);
    let mut sent = Vec::new();
    let command = Command::Read { offset, length };
    client.request(cookie, CommandFlags::empty(), &command, &mut sent)?;
    sent.drain(..).for_each(|piece| server.handle_input(piece));
    let Some(Incoming::Request { reply_to, .. }) = server.poll_request()? else {
        return Err("the server saw no request".into());
    };
    let reply = Reply::Data(Payload::from(data.clone()));
    server.reply(reply_to, Ok(reply), &mut sent);
    sent.into_iter()
        .for_each(|piece| client.handle_input(piece));
    while let Some(event) = client.poll_reply()? {
        if let ReplyEvent::Done { result, .. } = event {
            return Ok(result.map_err(|failure| format!("{failure:?}"))?);
        }
    }
    Err("the request was not answered".into())
}

/// Both ends, once they have agreed on structured replies.
fn connect() -> Result<(client::Transmission, server::Transmission), Box<dyn Error>> {
    let export = Export {
        name: "disk".into(),
        description: None,
        size: SIZE,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        block_sizes: Some(BlockSizes::default()),
    };
    let mut client = client::Handshake::new(HandshakeOptions::default());
    let mut server = server::Handshake::new(vec![export], HandshakeLimits::default());
    loop {
        while let Some(bytes) = server.poll_output() {
            client.handle_input(bytes)?;
        }
        while let Some(bytes) = client.poll_output() {
            server.handle_input(bytes)?;
        }
        if let Some((_, client)) = client.finish() {
            let Some(HandshakeEvent::Transmission { transmission, .. }) = server.poll_event()
            else {
                return Err("the server does not agree".into());
            };
            return Ok((client, transmission));
        }
    }
}
