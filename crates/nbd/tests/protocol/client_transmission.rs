//! The client's requests, and replies as a good server may send them.

use bytes::Bytes;
use nbd::client::{Handshake, HandshakeOptions, ReplyEvent, RequestError, Transmission};
use nbd::wire::{CommandFlags, CommandType, Errno, ExtentFlags};
use nbd::{BrokenRule, Command, Extent, Failure, Payload};

use crate::wire::*;

/// Everything but READ_ONLY.
pub(crate) const ALL_FLAGS: u16 = 0b1111_1111_1101;
pub(crate) const SIZE: u64 = 1 << 20;

/// A client in transmission with a server that offers `flags`.
pub(crate) fn client(structured: bool, flags: u16) -> Transmission {
    let options = HandshakeOptions {
        export: String::new(),
        structured_replies: structured,
        base_allocation: structured,
    };
    let mut client = Handshake::new(options);
    let stream = [
        greeting(3),
        if structured {
            [
                reply(OPT_STRUCTURED_REPLY, REP_ACK, b""),
                reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &meta_context(7)),
                reply(OPT_SET_META_CONTEXT, REP_ACK, b""),
            ]
            .concat()
        } else {
            Vec::new()
        },
        reply(OPT_GO, REP_INFO, &info_export(SIZE, flags)),
        reply(OPT_GO, REP_INFO, &info_block_size([512, 4096, 1 << 16])),
        reply(OPT_GO, REP_ACK, b""),
    ];
    client.handle_input(stream.concat().into()).unwrap();
    client.finish().unwrap().1
}

/// Sends a request and gives its bytes.
pub(crate) fn ask(
    client: &mut Transmission,
    cookie: u64,
    flags: CommandFlags,
    command: &Command,
) -> Result<Vec<u8>, RequestError> {
    let mut out = Vec::new();
    client.request(cookie, flags, command, &mut out)?;
    Ok(out.concat())
}

/// All events of one piece of input.
fn events(client: &mut Transmission, input: &[u8]) -> Vec<ReplyEvent> {
    client.handle_input(Bytes::copy_from_slice(input));
    std::iter::from_fn(|| client.poll_reply().unwrap()).collect()
}

fn done(cookie: u64) -> ReplyEvent {
    ReplyEvent::Done {
        cookie,
        result: Ok(()),
    }
}

const NONE: CommandFlags = CommandFlags::empty();

#[test]
fn requests_are_encoded_as_the_document_says() {
    let client = &mut client(true, ALL_FLAGS);
    let (offset, length) = (4096, 512);
    let data = Payload::from(Bytes::from(vec![7; 512]));
    let cases = [
        (
            Command::Read { offset, length },
            CommandFlags::DF,
            4,
            CMD_READ,
        ),
        (
            Command::Trim { offset, length },
            CommandFlags::FUA,
            1,
            CMD_TRIM,
        ),
        (Command::Cache { offset, length }, NONE, 0, CMD_CACHE),
        (
            Command::WriteZeroes { offset, length },
            CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            18,
            CMD_WRITE_ZEROES,
        ),
        (
            Command::BlockStatus { offset, length },
            CommandFlags::REQ_ONE,
            8,
            CMD_BLOCK_STATUS,
        ),
    ];
    for (cookie, (command, flags, bits, number)) in (1..).zip(cases) {
        let sent = ask(client, cookie, flags, &command).unwrap();
        assert_eq!(sent, request(bits, number, cookie, offset, length));
    }
    let sent = ask(client, 8, NONE, &Command::Flush).unwrap();
    assert_eq!(sent, request(0, CMD_FLUSH, 8, 0, 0));
    let sent = ask(client, 9, NONE, &Command::Write { offset, data }).unwrap();
    assert_eq!(
        sent,
        [request(0, CMD_WRITE, 9, offset, length), vec![7; 512]].concat()
    );
    assert_eq!(client.outstanding(), 7);
}

#[test]
fn written_data_is_handed_on_without_a_copy() {
    let client = &mut client(true, ALL_FLAGS);
    let data = Bytes::from(vec![7; 4096]);
    let parts = [data.slice(..1024), data.slice(1024..)];
    let mut out = Vec::new();
    let write = Command::Write {
        offset: 0,
        data: parts.into_iter().collect(),
    };
    client.request(1, NONE, &write, &mut out).unwrap();
    let addresses: Vec<_> = out[1..].iter().map(|part| part.as_ptr()).collect();
    assert_eq!(addresses, [data.as_ptr(), data[1024..].as_ptr()]);
}

#[test]
fn requests_that_break_a_rule_are_not_sent() {
    let read = |offset, length| Command::Read { offset, length };
    let write = |length| Command::Write {
        offset: 0,
        data: Payload::zeros(length),
    };
    let trim = Command::Trim {
        offset: 0,
        length: 512,
    };
    let status = Command::BlockStatus {
        offset: 0,
        length: 512,
    };
    let out_of_range = |offset, length| BrokenRule::OutOfRange {
        command: CommandType::READ,
        offset,
        length,
        size: SIZE,
    };
    let flags = |command, flags| BrokenRule::Flags { command, flags };
    let not_negotiated = BrokenRule::NotNegotiated;
    let misaligned = |offset, length| BrokenRule::Misaligned {
        offset,
        length,
        minimum: 512,
    };
    let too_long = |length| BrokenRule::TooLong {
        length,
        maximum: 1 << 16,
    };
    let cases = [
        (1, NONE, read(0, 0), BrokenRule::Empty(CommandType::READ)),
        (1, NONE, write(0), BrokenRule::Empty(CommandType::WRITE)),
        (1, NONE, read(0, (1 << 16) + 512), too_long((1 << 16) + 512)),
        (1, NONE, write((1 << 16) + 512), too_long((1 << 16) + 512)),
        (1, NONE, read(SIZE, 512), out_of_range(SIZE, 512)),
        (
            1,
            NONE,
            read(SIZE - 512, 1024),
            out_of_range(SIZE - 512, 1024),
        ),
        (1, NONE, read(u64::MAX, 512), out_of_range(u64::MAX, 512)),
        (1, NONE, read(1, 512), misaligned(1, 512)),
        (1, NONE, read(512, 513), misaligned(512, 513)),
        (
            3,
            NONE,
            write(512),
            BrokenRule::ReadOnly(CommandType::WRITE),
        ),
        (1, NONE, Command::Flush, not_negotiated(CommandType::FLUSH)),
        (1, NONE, trim.clone(), not_negotiated(CommandType::TRIM)),
        (1, NONE, status, not_negotiated(CommandType::BLOCK_STATUS)),
        (
            1,
            CommandFlags::FUA,
            write(512),
            flags(CommandType::WRITE, 1),
        ),
        (
            1,
            CommandFlags::DF,
            read(0, 512),
            flags(CommandType::READ, 4),
        ),
        (
            ALL_FLAGS,
            CommandFlags::NO_HOLE,
            trim.clone(),
            flags(CommandType::TRIM, 2),
        ),
        (
            ALL_FLAGS,
            CommandFlags::REQ_ONE,
            read(0, 512),
            flags(CommandType::READ, 8),
        ),
        (
            ALL_FLAGS,
            CommandFlags::from_bits_retain(0x4000),
            trim,
            flags(CommandType::TRIM, 0x4000),
        ),
    ];
    for (offered, flags, command, rule) in cases {
        let client = &mut client(false, offered);
        let sent = ask(client, 1, flags, &command);
        assert_eq!(sent, Err(RequestError::BrokenRule(rule)), "{command:?}");
        assert_eq!(client.outstanding(), 0);
    }
}

#[test]
fn a_cookie_can_be_used_again_once_it_is_answered() {
    let client = &mut client(true, ALL_FLAGS);
    ask(client, 5, NONE, &Command::Flush).unwrap();
    assert_eq!(
        ask(client, 5, NONE, &Command::Flush),
        Err(RequestError::CookieInUse(5))
    );
    assert_eq!(events(client, &simple(0, 5)), [done(5)]);
    ask(client, 5, NONE, &Command::Flush).unwrap();
}

#[test]
fn after_disconnect_nothing_is_asked_but_replies_still_come() {
    let client = &mut client(true, ALL_FLAGS);
    ask(client, 1, NONE, &Command::Flush).unwrap();
    let mut out = Vec::new();
    client.disconnect(&mut out);
    client.disconnect(&mut out);
    assert_eq!(out.concat(), request(0, CMD_DISC, 0, 0, 0), "sent once");
    assert_eq!(
        ask(client, 2, NONE, &Command::Flush),
        Err(RequestError::Disconnected)
    );
    assert_eq!(events(client, &simple(0, 1)), [done(1)]);
}

#[test]
fn a_simple_read_is_streamed_as_it_arrives() {
    let client = &mut client(false, 1);
    let (offset, length) = (4096, 1024);
    ask(client, 1, NONE, &Command::Read { offset, length }).unwrap();
    assert_eq!(events(client, &simple(0, 1)), []);
    let input = Bytes::from(vec![1; 1000]);
    client.handle_input(input.clone());
    let Ok(Some(ReplyEvent::Data {
        cookie: 1,
        offset: 4096,
        data,
        certain: true,
    })) = client.poll_reply()
    else {
        panic!("no data");
    };
    assert_eq!(
        (data.as_ptr(), data.len()),
        (input.as_ptr(), 1000),
        "not copied"
    );
    assert_eq!(client.poll_reply(), Ok(None));

    let rest = Bytes::from(vec![2; 24]);
    let expected = [
        ReplyEvent::Data {
            cookie: 1,
            offset: 5096,
            data: rest.clone(),
            certain: true,
        },
        done(1),
    ];
    assert_eq!(events(client, &rest), expected);
    assert_eq!(client.outstanding(), 0);
}

#[test]
fn a_simple_error_has_no_data_and_unknown_ones_are_einval() {
    let client = &mut client(false, ALL_FLAGS);
    for (error, errno) in [
        (5, Errno::EIO),
        (108, Errno::ESHUTDOWN),
        (12345, Errno::EINVAL),
    ] {
        ask(
            client,
            1,
            NONE,
            &Command::Read {
                offset: 0,
                length: 512,
            },
        )
        .unwrap();
        let failed = ReplyEvent::Done {
            cookie: 1,
            result: Err(errno.into()),
        };
        assert_eq!(events(client, &simple(error, 1)), [failed]);
    }
}

/// One request, and a reply to it in which anything that is allowed happens.
#[test]
fn a_structured_read_takes_chunks_in_any_order_and_split_anywhere() {
    let stream = [
        chunk(0, CHUNK_DATA, 1, &data_at(1024 + 512, &[2; 512])),
        simple(0, 2),
        chunk(0, CHUNK_HOLE, 1, &hole_at(2048, 512)),
        chunk(0x8000 | DONE, CHUNK_DATA, 1, &data_at(1024, &[1; 512])),
    ]
    .concat();
    for pieces in splits(&stream) {
        let client = &mut client(true, ALL_FLAGS);
        ask(
            client,
            1,
            NONE,
            &Command::Read {
                offset: 1024,
                length: 1536,
            },
        )
        .unwrap();
        ask(client, 2, NONE, &Command::Flush).unwrap();
        let mut read = vec![0xff; 1536];
        let mut ends = Vec::new();
        for event in pieces.iter().flat_map(|piece| events(client, piece)) {
            match event {
                ReplyEvent::Data {
                    cookie: 1,
                    offset,
                    data,
                    ..
                } => {
                    let at = usize::try_from(offset - 1024).unwrap();
                    read[at..at + data.len()].copy_from_slice(&data);
                }
                ReplyEvent::Hole {
                    cookie: 1,
                    offset: 2048,
                    length: 512,
                } => read[1024..].fill(0),
                ReplyEvent::Done {
                    cookie,
                    result: Ok(()),
                } => ends.push(cookie),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(read, [vec![1; 512], vec![2; 512], vec![0; 512]].concat());
        assert_eq!(ends, [2, 1]);
    }
}

#[test]
fn a_read_fails_with_the_first_error_and_its_message() {
    let client = &mut client(true, ALL_FLAGS);
    ask(
        client,
        1,
        NONE,
        &Command::Read {
            offset: 0,
            length: 1024,
        },
    )
    .unwrap();
    let stream = [
        chunk(0, CHUNK_DATA, 1, &data_at(0, &[1; 512])),
        chunk(0, CHUNK_ERROR_OFFSET, 1, &error_at(5, "bad sector\n", 512)),
        chunk(
            0,
            0x8fff,
            1,
            &[&error(1, "of a later version")[..], b"and more"].concat(),
        ),
        chunk(DONE, CHUNK_NONE, 1, b""),
    ];
    let events = events(client, &stream.concat());
    let failure = Failure::new(Errno::EIO, "bad sector\u{fffd}");
    assert_eq!(
        events.last(),
        Some(&ReplyEvent::Done {
            cookie: 1,
            result: Err(failure)
        })
    );
}

#[test]
fn an_error_may_end_a_reply_to_anything() {
    let client = &mut client(true, ALL_FLAGS);
    let commands = [
        Command::Flush,
        Command::Trim {
            offset: 0,
            length: 512,
        },
        Command::BlockStatus {
            offset: 0,
            length: 512,
        },
        Command::Read {
            offset: 0,
            length: 512,
        },
    ];
    for command in commands {
        ask(client, 1, NONE, &command).unwrap();
        let failed = chunk(DONE, CHUNK_ERROR, 1, &error(28, "full"));
        let result = Err(Failure::new(Errno::ENOSPC, "full"));
        assert_eq!(
            events(client, &failed),
            [ReplyEvent::Done { cookie: 1, result }]
        );
    }
}

#[test]
fn block_status_ends_with_the_export() {
    let client = &mut client(true, ALL_FLAGS);
    let command = Command::BlockStatus {
        offset: SIZE - 1024,
        length: 1024,
    };
    ask(client, 1, NONE, &command).unwrap();
    let extents = [(512, 0), (1 << 20, 0xffff_ffff)];
    let stream = chunk(DONE, CHUNK_STATUS, 1, &status(7, &extents));
    let all = ExtentFlags::HOLE | ExtentFlags::ZERO;
    let extents = vec![
        Extent {
            length: 512,
            flags: ExtentFlags::empty(),
        },
        Extent {
            length: 512,
            flags: all,
        },
    ];
    assert_eq!(
        events(client, &stream),
        [ReplyEvent::BlockStatus { cookie: 1, extents }, done(1)]
    );
}

#[test]
fn req_one_and_df_allow_what_they_ask_for() {
    let client = &mut client(true, ALL_FLAGS);
    let command = Command::BlockStatus {
        offset: 0,
        length: 512,
    };
    ask(client, 1, CommandFlags::REQ_ONE, &command).unwrap();
    let stream = chunk(DONE, CHUNK_STATUS, 1, &status(7, &[(512, 0)]));
    assert_eq!(events(client, &stream).len(), 2);

    ask(
        client,
        1,
        CommandFlags::DF,
        &Command::Read {
            offset: 0,
            length: 512,
        },
    )
    .unwrap();
    let stream = [
        chunk(0, CHUNK_DATA, 1, &data_at(0, &[1; 512])),
        chunk(DONE, CHUNK_NONE, 1, b""),
    ];
    assert_eq!(events(client, &stream.concat()).len(), 2);
}
