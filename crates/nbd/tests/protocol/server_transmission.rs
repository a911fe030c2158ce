//! The server's view of requests, good and bad, and its replies.

use bytes::Bytes;
use nbd::server::{Incoming, ReplyTo, Transmission, TransmissionError};
use nbd::wire::{CommandFlags, Errno, ExtentFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Extent, Failure, Negotiated, Payload, Reply};

use crate::wire::*;

const SIZE: u64 = 1 << 20;

fn export(flags: TransmissionFlags) -> Export {
    let block_sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 1 << 16,
    };
    let block_sizes = Some(block_sizes);
    Export {
        name: String::new(),
        description: None,
        size: SIZE,
        flags,
        block_sizes,
    }
}

fn writable() -> Export {
    export(TransmissionFlags::all() - TransmissionFlags::READ_ONLY)
}

fn server(export: &Export, structured: bool) -> Transmission {
    let negotiated = Negotiated {
        structured_replies: structured,
        base_allocation: structured,
    };
    Transmission::new(export, negotiated)
}

fn incoming(server: &mut Transmission, input: &[u8]) -> Incoming {
    server.handle_input(Bytes::copy_from_slice(input));
    server.poll_request().unwrap().unwrap()
}

fn command(server: &mut Transmission, input: &[u8]) -> (ReplyTo, CommandFlags, Command) {
    match incoming(server, input) {
        Incoming::Request {
            reply_to,
            flags,
            command,
        } => (reply_to, flags, command),
        other => panic!("{other:?}"),
    }
}

/// The bytes of the answer to a request.
fn answer(structured: bool, input: &[u8], result: Result<Reply, Failure>) -> Vec<u8> {
    let server = &mut server(&writable(), structured);
    let (reply_to, ..) = command(server, input);
    let mut out = Vec::new();
    server.reply(reply_to, result, &mut out);
    out.concat()
}

#[test]
fn every_command_arrives_with_its_flags() {
    let server = &mut server(&writable(), true);
    let (offset, length) = (4096, 512);
    let cases = [
        (5, CMD_READ, Command::Read { offset, length }),
        (1, CMD_TRIM, Command::Trim { offset, length }),
        (0, CMD_CACHE, Command::Cache { offset, length }),
        (
            19,
            CMD_WRITE_ZEROES,
            Command::WriteZeroes { offset, length },
        ),
        (8, CMD_BLOCK_STATUS, Command::BlockStatus { offset, length }),
    ];
    for (bits, number, expected) in cases {
        let (_, flags, command) = command(server, &request(bits, number, 1, offset, length));
        assert_eq!((flags.bits(), command), (bits, expected));
    }
    let (_, _, flush) = command(server, &request(0, CMD_FLUSH, 1, 0, 0));
    assert_eq!(flush, Command::Flush);
}

#[test]
fn a_write_is_whole_and_shares_the_inputs_memory() {
    let server = &mut server(&writable(), true);
    let header = request(1, CMD_WRITE, 1, 0, 2048);
    let first = Bytes::from([&header[..], &[1; 1024]].concat());
    let second = Bytes::from([&[2; 1024][..], &request(0, CMD_DISC, 0, 0, 0)].concat());
    server.handle_input(first.clone());
    assert_eq!(server.poll_request(), Ok(None));
    server.handle_input(second.clone());
    let Ok(Some(Incoming::Request { command, .. })) = server.poll_request() else {
        panic!()
    };
    let Command::Write { offset: 0, data } = command else {
        panic!("{command:?}")
    };
    let addresses: Vec<_> = data.parts().iter().map(|part| part.as_ptr()).collect();
    assert_eq!(addresses, [first[28..].as_ptr(), second.as_ptr()]);
    assert_eq!(data.len(), 2048);
    assert_eq!(server.poll_request(), Ok(Some(Incoming::Disconnect)));
}

#[test]
fn a_stream_means_the_same_however_it_is_split() {
    let stream = [
        request(0, CMD_WRITE, 1, 0, 512),
        vec![1; 512],
        request(0, CMD_WRITE, 2, SIZE, 512),
        vec![2; 512],
        request(0, CMD_READ, 3, 0, 512),
        request(0, CMD_DISC, 0, 0, 0),
        b"nothing follows".to_vec(),
    ]
    .concat();
    let all = |pieces: Vec<Bytes>| {
        let mut server = server(&writable(), true);
        let mut all = Vec::new();
        for piece in pieces {
            server.handle_input(piece);
            all.extend(std::iter::from_fn(|| server.poll_request().unwrap()));
        }
        all
    };
    let mut outcomes = splits(&stream).map(all);
    let first = outcomes.next().unwrap();
    assert_eq!(first.len(), 4);
    assert!(outcomes.all(|other| other == first));
}

#[test]
fn broken_rules_are_refused_with_their_errno_and_the_stream_goes_on() {
    let none = TransmissionFlags::empty();
    let read_only = TransmissionFlags::all();
    let writable = read_only - TransmissionFlags::READ_ONLY;
    let write = |offset, length: u32| {
        [
            request(0, CMD_WRITE, 1, offset, length),
            vec![0; length as usize],
        ]
        .concat()
    };
    let plain = |flags, command, offset, length| request(flags, command, 1, offset, length);
    let cases = [
        (writable, plain(0, 99, 0, 0), Errno::EINVAL),
        (writable, plain(0, 8, 0, 512), Errno::EINVAL),
        (writable, plain(0, CMD_READ, 0, 0), Errno::EINVAL),
        (writable, plain(0, CMD_READ, SIZE, 512), Errno::EINVAL),
        (
            writable,
            plain(0, CMD_READ, u64::MAX - 511, 512),
            Errno::EINVAL,
        ),
        (
            writable,
            plain(0, CMD_READ, 0, (1 << 16) + 512),
            Errno::EINVAL,
        ),
        (writable, plain(0, CMD_READ, 256, 512), Errno::EINVAL),
        (writable, plain(0, CMD_READ, 0, 256), Errno::EINVAL),
        (writable, plain(2, CMD_READ, 0, 512), Errno::EINVAL),
        (writable, plain(0x8000, CMD_READ, 0, 512), Errno::EINVAL),
        (writable, plain(0, CMD_FLUSH, 512, 0), Errno::EINVAL),
        (writable, plain(0, CMD_FLUSH, 0, 512), Errno::EINVAL),
        (writable, plain(0, CMD_TRIM, SIZE, 512), Errno::EINVAL),
        (writable, plain(0, CMD_CACHE, SIZE, 512), Errno::EINVAL),
        (
            writable,
            plain(0, CMD_BLOCK_STATUS, SIZE, 512),
            Errno::EINVAL,
        ),
        (
            writable,
            plain(0, CMD_WRITE_ZEROES, SIZE, 512),
            Errno::ENOSPC,
        ),
        (writable, write(SIZE, 512), Errno::ENOSPC),
        (writable, write(0, (1 << 16) + 512), Errno::EINVAL),
        (writable, write(0, 0), Errno::EINVAL),
        (writable, write(1, 512), Errno::EINVAL),
        (read_only, write(0, 512), Errno::EPERM),
        (read_only, write(SIZE, 512), Errno::EPERM),
        (read_only, plain(0, CMD_TRIM, 0, 512), Errno::EPERM),
        (read_only, plain(0, CMD_WRITE_ZEROES, 0, 512), Errno::EPERM),
        (none, plain(0, CMD_TRIM, 0, 512), Errno::EINVAL),
        (none, plain(0, CMD_CACHE, 0, 512), Errno::EINVAL),
        (none, plain(0, CMD_WRITE_ZEROES, 0, 512), Errno::EINVAL),
        (none, plain(0, CMD_FLUSH, 0, 0), Errno::EINVAL),
        (none, plain(1, CMD_READ, 0, 512), Errno::EINVAL),
        (
            writable - TransmissionFlags::SEND_FAST_ZERO,
            plain(16, CMD_WRITE_ZEROES, 0, 512),
            Errno::EINVAL,
        ),
    ];
    for (flags, input, errno) in cases {
        let server = &mut server(&export(flags), true);
        let Incoming::Refused { reply_to, failure } = incoming(server, &input) else {
            panic!("{input:x?} was taken");
        };
        assert_eq!(failure.errno, errno, "{failure}");
        let mut out = Vec::new();
        server.reply(reply_to, Err(failure.clone()), &mut out);
        let expected = chunk(
            DONE,
            CHUNK_ERROR,
            1,
            &error(errno.to_wire(), &failure.message),
        );
        assert_eq!(out.concat(), expected);
        let disconnect = incoming(server, &request(0, CMD_DISC, 0, 0, 0));
        assert_eq!(disconnect, Incoming::Disconnect, "the stream goes on");
    }
}

#[test]
fn block_status_and_df_need_what_was_negotiated() {
    let mut server = server(&writable(), false);
    for (flags, number) in [(0, CMD_BLOCK_STATUS), (4, CMD_READ)] {
        let Incoming::Refused { reply_to, failure } =
            incoming(&mut server, &request(flags, number, 1, 0, 512))
        else {
            panic!("taken");
        };
        let mut out = Vec::new();
        server.reply(reply_to, Err(failure), &mut out);
        assert_eq!(out.concat(), simple(22, 1));
    }
}

#[test]
fn a_client_that_breaks_the_framing_is_dropped() {
    let mut desynchronised = server(&writable(), true);
    desynchronised.handle_input(Bytes::from_static(
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ));
    let error = TransmissionError::Magic(0x4745_5420);
    assert_eq!(desynchronised.poll_request(), Err(error.clone()));
    desynchronised.handle_input(request(0, CMD_READ, 1, 0, 512).into());
    assert_eq!(desynchronised.poll_request(), Err(error), "for good");

    let mut flooded = server(&writable(), true);
    flooded.handle_input(request(0, CMD_WRITE, 1, 0, (1 << 25) + 1).into());
    let error = TransmissionError::PayloadTooLong {
        length: (1 << 25) + 1,
        limit: 1 << 25,
    };
    assert_eq!(flooded.poll_request(), Err(error));
}

#[test]
fn nothing_follows_disconnect() {
    let server = &mut server(&writable(), true);
    let disconnect = request(0, CMD_DISC, 0, 0, 0);
    assert_eq!(incoming(server, &disconnect), Incoming::Disconnect);
    server.handle_input(disconnect.into());
    assert_eq!(server.poll_request(), Ok(None));
}

#[test]
fn reads_are_answered_in_the_negotiated_form_without_a_copy() {
    let read = request(0, CMD_READ, 9, 4096, 1024);
    let data = Bytes::from(vec![7; 1024]);
    let parts = [data.slice(..512), data.slice(512..)];
    let payload: Payload = parts.into_iter().collect();
    let ok = || Ok(Reply::Data(payload.clone()));
    let structured = chunk(DONE, CHUNK_DATA, 9, &data_at(4096, &data));
    assert_eq!(answer(true, &read, ok()), structured);
    assert_eq!(
        answer(false, &read, ok()),
        [&simple(0, 9)[..], &data].concat()
    );

    let server = &mut server(&writable(), true);
    let (reply_to, ..) = command(server, &read);
    let mut out = Vec::new();
    server.reply(reply_to, ok(), &mut out);
    let addresses: Vec<_> = out[1..].iter().map(|part| part.as_ptr()).collect();
    assert_eq!(addresses, [data.as_ptr(), data[512..].as_ptr()]);
}

#[test]
fn success_without_data_is_a_simple_reply_in_both_forms() {
    for structured in [false, true] {
        let flush = request(0, CMD_FLUSH, 9, 0, 0);
        assert_eq!(answer(structured, &flush, Ok(Reply::Done)), simple(0, 9));
    }
}

#[test]
fn failures_carry_their_message_where_there_is_room_for_it() {
    let read = request(0, CMD_READ, 9, 0, 512);
    let failure = || Err(Failure::new(Errno::EIO, "the file changed"));
    let structured = chunk(DONE, CHUNK_ERROR, 9, &error(5, "the file changed"));
    assert_eq!(answer(true, &read, failure()), structured);
    assert_eq!(answer(false, &read, failure()), simple(5, 9));
    let long = Err(Failure::new(Errno::EIO, "x".repeat(5000)));
    let cut = chunk(DONE, CHUNK_ERROR, 9, &error(5, &"x".repeat(4096)));
    assert_eq!(answer(true, &read, long), cut);
}

#[test]
fn an_answer_that_does_not_fit_becomes_eio() {
    let data = |len| Ok(Reply::Data(Payload::zeros(len)));
    let message = "the export's answer does not fit the request";
    let cases = [
        (request(0, CMD_READ, 9, 0, 512), data(511)),
        (request(0, CMD_READ, 9, 0, 512), Ok(Reply::Done)),
        (request(0, CMD_FLUSH, 9, 0, 0), data(0)),
        (request(0, CMD_BLOCK_STATUS, 9, 0, 512), Ok(Reply::Done)),
        (
            request(0, CMD_BLOCK_STATUS, 9, 0, 512),
            Ok(Reply::BlockStatus(Vec::new())),
        ),
    ];
    for (input, result) in cases {
        assert_eq!(
            answer(true, &input, result),
            chunk(DONE, CHUNK_ERROR, 9, &error(5, message))
        );
    }
}

#[test]
fn block_status_sends_the_extents_that_may_be_sent() {
    let sent = |flags, extents: &[(u32, u32)]| {
        let reply = extents.iter().map(|&(length, flags)| Extent {
            length,
            flags: ExtentFlags::from_bits_retain(flags),
        });
        let input = request(flags, CMD_BLOCK_STATUS, 9, 0, 2048);
        answer(true, &input, Ok(Reply::BlockStatus(reply.collect())))
    };
    let status = |extents: &[(u32, u32)]| chunk(DONE, CHUNK_STATUS, 9, &status(1, extents));
    let req_one = 8;
    assert_eq!(
        sent(0, &[(512, 0), (512, 3)]),
        status(&[(512, 0), (512, 3)])
    );
    assert_eq!(
        sent(0, &[(1024, 0), (4096, 3)]),
        status(&[(1024, 0), (4096, 3)])
    );
    assert_eq!(sent(0, &[(2048, 0), (512, 3)]), status(&[(2048, 0)]));
    assert_eq!(sent(0, &[(0, 0), (512, 3)]), status(&[(512, 3)]));
    assert_eq!(sent(req_one, &[(512, 0), (512, 3)]), status(&[(512, 0)]));
    assert_eq!(sent(req_one, &[(4096, 3)]), status(&[(2048, 3)]));
}
