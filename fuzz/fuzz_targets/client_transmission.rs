//! Whatever a server replies, a read that succeeds has each of its bytes exactly once, a block
//! status that succeeds has extents, and no request is answered twice.
#![no_main]

use std::collections::HashMap;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nbd::Command;
use nbd::client::{Handshake, HandshakeOptions, ReplyEvent, Transmission, TransmissionError};
use nbd::wire::CommandFlags;
use nbd_fuzz::{piece_length, pieces};

/// What the server says until transmission begins: 1 MiB, every flag but READ_ONLY.
const PLAIN: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c\
    \x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x0f\xfd\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00";
/// The same, after structured replies and `base:allocation` as context 1.
const STRUCTURED: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x04\x00\x00\x00\x13\
    \x00\x00\x00\x01base:allocation\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c\
    \x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x0f\xfd\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00";

fuzz_target!(|input: &[u8]| {
    let [choices, length, stream @ ..] = input else {
        return;
    };
    let structured = choices & 1 != 0;
    let whole = meet(structured, pieces(stream, stream.len()));
    let split = meet(structured, pieces(stream, piece_length(*length)));
    assert_eq!(whole, split);
    check(&whole.0);
});

/// One request of each kind, by cookie.
fn requests(structured: bool) -> Vec<(CommandFlags, Command)> {
    let none = CommandFlags::empty();
    let mut requests = vec![
        (
            none,
            Command::Read {
                offset: 4,
                length: 16,
            },
        ),
        (
            none,
            Command::Read {
                offset: 0,
                length: 1 << 20,
            },
        ),
        (none, Command::Flush),
        (
            CommandFlags::FUA,
            Command::WriteZeroes {
                offset: 0,
                length: 512,
            },
        ),
    ];
    if structured {
        let status = Command::BlockStatus {
            offset: 512,
            length: 4096,
        };
        requests.push((
            CommandFlags::DF,
            Command::Read {
                offset: 4,
                length: 16,
            },
        ));
        requests.push((none, status.clone()));
        requests.push((CommandFlags::REQ_ONE, status));
    }
    requests
}

fn transmission(structured: bool) -> Transmission {
    let options = HandshakeOptions {
        export: String::new(),
        structured_replies: structured,
        base_allocation: structured,
    };
    let mut handshake = Handshake::new(options);
    let greeting = if structured { STRUCTURED } else { PLAIN };
    handshake
        .handle_input(Bytes::from_static(greeting))
        .expect("a good handshake");
    let (_, mut client) = handshake.finish().expect("a whole handshake");
    for (cookie, (flags, command)) in (0..).zip(requests(structured)) {
        client
            .request(cookie, flags, &command, &mut Vec::new())
            .expect("a good request");
    }
    client
}

type Outcome = (Vec<ReplyEvent>, Option<TransmissionError>);

fn meet(structured: bool, pieces: impl Iterator<Item = Bytes>) -> Outcome {
    let mut client = transmission(structured);
    let mut events = Vec::new();
    for piece in pieces {
        client.handle_input(piece);
        loop {
            match client.poll_reply() {
                Ok(Some(event)) => add(&mut events, event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

/// Appends an event; data that continues the last event is joined with it.
fn add(events: &mut Vec<ReplyEvent>, event: ReplyEvent) {
    if let (
        Some(ReplyEvent::Data {
            cookie: last,
            offset: start,
            data: before,
            certain: before_certain,
        }),
        ReplyEvent::Data {
            cookie,
            offset,
            data,
            certain,
        },
    ) = (events.last_mut(), &event)
        && (*last, *start + before.len() as u64) == (*cookie, *offset)
        && before_certain == certain
    {
        *before = [&before[..], data].concat().into();
    } else {
        events.push(event);
    }
}

fn check(events: &[ReplyEvent]) {
    let requests = requests(true);
    let mut covered: HashMap<u64, Vec<bool>> = HashMap::new();
    let mut answered = Vec::new();
    let mut cover = |cookie: u64, offset: u64, length: usize| {
        let (_, command) = &requests[cookie as usize];
        let bytes = covered
            .entry(cookie)
            .or_insert_with(|| vec![false; command.length() as usize]);
        let start = (offset - command.offset()) as usize;
        for byte in &mut bytes[start..start + length] {
            assert!(!std::mem::replace(byte, true), "a byte came twice");
        }
        bytes.iter().all(|&byte| byte)
    };
    let mut whole = HashMap::new();
    for event in events {
        let cookie = match event {
            ReplyEvent::Data {
                cookie,
                offset,
                data,
                ..
            } => {
                whole.insert(*cookie, cover(*cookie, *offset, data.len()));
                cookie
            }
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => {
                whole.insert(*cookie, cover(*cookie, *offset, *length as usize));
                cookie
            }
            ReplyEvent::BlockStatus { cookie, extents } => {
                assert!(!extents.is_empty());
                whole.insert(*cookie, true);
                cookie
            }
            ReplyEvent::Done { cookie, result } => {
                let command = &requests[*cookie as usize].1;
                let needs_more =
                    matches!(command, Command::Read { .. } | Command::BlockStatus { .. });
                assert!(
                    result.is_err() || !needs_more || whole[cookie],
                    "success cut short"
                );
                answered.push(*cookie);
                continue;
            }
        };
        assert!(!answered.contains(cookie), "something followed the end");
    }
    let count = answered.len();
    answered.sort_unstable();
    answered.dedup();
    assert_eq!(answered.len(), count, "a request was answered twice");
}
