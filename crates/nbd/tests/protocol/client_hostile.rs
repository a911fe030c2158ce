//! A server that breaks each rule of transmission in turn.

use bytes::Bytes;
use nbd::Command;
use nbd::client::{Transmission, TransmissionError};
use nbd::wire::{ChunkType, CommandFlags, CommandType};

use crate::client_transmission::{ALL_FLAGS, ask, client};
use crate::wire::*;

/// A client with requests 1: READ of 4096 at 512 with DF, 2: READ of 4096 at 512, 3: FLUSH,
/// 4: BLOCK_STATUS of 4096 at 0, 5: the same with REQ_ONE.
fn victim(structured: bool) -> Transmission {
    let mut client = client(structured, ALL_FLAGS);
    let read = Command::Read {
        offset: 512,
        length: 4096,
    };
    let status = Command::BlockStatus {
        offset: 0,
        length: 4096,
    };
    let none = CommandFlags::empty();
    if structured {
        ask(&mut client, 1, CommandFlags::DF, &read).unwrap();
        ask(&mut client, 4, none, &status).unwrap();
        ask(&mut client, 5, CommandFlags::REQ_ONE, &status).unwrap();
    }
    ask(&mut client, 2, none, &read).unwrap();
    ask(&mut client, 3, none, &Command::Flush).unwrap();
    client
}

/// The error that `stream` ends with, however it is split; it must stay.
fn error(structured: bool, stream: &[u8]) -> TransmissionError {
    let outcome = |pieces: Vec<Bytes>| {
        let mut client = victim(structured);
        for piece in pieces {
            client.handle_input(piece);
            loop {
                match client.poll_reply() {
                    Ok(None) => break,
                    Ok(Some(_)) => {}
                    Err(error) => {
                        client.handle_input(Bytes::from(simple(0, 3)));
                        assert_eq!(client.poll_reply(), Err(error.clone()));
                        return Some(error);
                    }
                }
            }
        }
        None
    };
    let mut outcomes = splits(stream).map(outcome);
    let first = outcomes.next().unwrap();
    assert!(outcomes.all(|other| other == first));
    first.unwrap()
}

fn chunk_length(chunk: ChunkType, length: u32) -> TransmissionError {
    TransmissionError::ChunkLength { chunk, length }
}

#[test]
fn replies_that_cannot_be_one() {
    assert_eq!(
        error(true, b"HTTP/1.1"),
        TransmissionError::Magic(0x4854_5450)
    );
    assert_eq!(
        error(true, &simple(0, 99)),
        TransmissionError::UnknownCookie(99)
    );
    let stranger = chunk(DONE, CHUNK_NONE, 99, b"");
    assert_eq!(error(true, &stranger), TransmissionError::UnknownCookie(99));
    assert_eq!(
        error(true, &[simple(0, 3), simple(0, 3)].concat()),
        TransmissionError::UnknownCookie(3),
        "an answer is given once"
    );
}

#[test]
fn replies_of_the_kind_that_was_not_agreed_on() {
    let none = chunk(DONE, CHUNK_NONE, 3, b"");
    assert_eq!(error(false, &none), TransmissionError::NotNegotiated);
    let read = TransmissionError::SimpleReply(CommandType::READ);
    assert_eq!(error(true, &simple(0, 2)), read);
    assert_eq!(error(true, &simple(5, 2)), read);
    let status = TransmissionError::SimpleReply(CommandType::BLOCK_STATUS);
    assert_eq!(error(true, &simple(0, 4)), status);
}

#[test]
fn chunks_that_do_not_answer_the_command() {
    let cases = [
        (3, CHUNK_DATA, data_at(512, b"x")),
        (4, CHUNK_HOLE, hole_at(0, 512)),
        (2, CHUNK_STATUS, status(7, &[(512, 0)])),
        (2, 3, vec![0; 12]),
        (4, 6, vec![0; 24]),
    ];
    for (cookie, chunk_type, payload) in cases {
        let stream = chunk(DONE, chunk_type, cookie, &payload);
        let error = error(true, &stream);
        let TransmissionError::UnexpectedChunk { chunk, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(chunk, ChunkType(chunk_type));
    }
}

#[test]
fn lengths_are_judged_by_the_header_alone() {
    let cases = [
        (3, CHUNK_NONE, 1),
        (2, CHUNK_DATA, 8),
        (2, CHUNK_DATA, 4096 + 8 + 1),
        (2, CHUNK_DATA, u32::MAX),
        (2, CHUNK_HOLE, 11),
        (2, CHUNK_HOLE, 13),
        (4, CHUNK_STATUS, 4),
        (4, CHUNK_STATUS, 13),
        (4, CHUNK_STATUS, 4 + 8 * ((1 << 20) + 1)),
        (2, CHUNK_ERROR, 5),
        (2, CHUNK_ERROR, u32::MAX),
        (2, CHUNK_ERROR_OFFSET, 13),
        (2, 0xffff, u32::MAX),
    ];
    for (cookie, chunk, length) in cases {
        let header = chunk_header(DONE, chunk, cookie, length);
        assert_eq!(error(true, &header), chunk_length(ChunkType(chunk), length));
    }
}

#[test]
fn data_outside_of_the_request() {
    let out_of_range = |chunk, offset, length| TransmissionError::OutOfRange {
        chunk: ChunkType(chunk),
        offset,
        length,
    };
    for (offset, length) in [
        (511, 1),
        (4608, 1),
        (4096, 513),
        (u64::MAX, 1),
        (1 << 32 | 512, 1),
    ] {
        let stream = chunk(
            DONE,
            CHUNK_DATA,
            2,
            &data_at(offset, &vec![0; length as usize]),
        );
        assert_eq!(
            error(true, &stream),
            out_of_range(CHUNK_DATA, offset, length)
        );
        let stream = chunk(DONE, CHUNK_HOLE, 2, &hole_at(offset, length));
        assert_eq!(
            error(true, &stream),
            out_of_range(CHUNK_HOLE, offset, length)
        );
    }
    let stream = chunk(DONE, CHUNK_HOLE, 2, &hole_at(512, u32::MAX));
    assert_eq!(
        error(true, &stream),
        out_of_range(CHUNK_HOLE, 512, u32::MAX)
    );
    for offset in [511, 4608] {
        let stream = chunk(DONE, CHUNK_ERROR_OFFSET, 2, &error_at(5, "", offset));
        assert_eq!(
            error(true, &stream),
            out_of_range(CHUNK_ERROR_OFFSET, offset, 0)
        );
    }
}

#[test]
fn data_that_overlaps_or_is_missing() {
    let data = chunk(0, CHUNK_DATA, 2, &data_at(512, &[0; 512]));
    let again = chunk(0, CHUNK_HOLE, 2, &hole_at(1023, 1));
    assert_eq!(
        error(true, &[&data[..], &again].concat()),
        TransmissionError::Overlap {
            offset: 1023,
            length: 1
        }
    );
    let end = chunk(DONE, CHUNK_NONE, 2, b"");
    let missing = TransmissionError::MissingData {
        missing: 4096 - 512,
    };
    assert_eq!(error(true, &[&data[..], &end].concat()), missing);
    let empty = chunk(DONE, CHUNK_HOLE, 2, &hole_at(512, 0));
    assert_eq!(error(true, &empty), TransmissionError::EmptyExtent);
}

#[test]
fn data_in_pieces_despite_df() {
    let first = chunk(0, CHUNK_DATA, 1, &data_at(512, &[0; 512]));
    let second = chunk(0, CHUNK_DATA, 1, &data_at(1024, &[0; 512]));
    assert_eq!(
        error(true, &[first, second].concat()),
        TransmissionError::Fragmented
    );
}

#[test]
fn none_that_is_not_the_end() {
    let none = chunk(0, CHUNK_NONE, 3, b"");
    assert_eq!(error(true, &none), TransmissionError::NoneNotDone);
}

#[test]
fn block_status_with_a_wrong_context_or_wrong_extents() {
    let answer = |cookie, context, extents: &[(u32, u32)]| {
        chunk(0, CHUNK_STATUS, cookie, &status(context, extents))
    };
    let excess = TransmissionError::ExcessExtents;
    let cases = [
        (
            answer(4, 8, &[(512, 0)]),
            TransmissionError::UnknownContext(8),
        ),
        (
            answer(4, 7, &[(512, 0), (0, 0)]),
            TransmissionError::EmptyExtent,
        ),
        (answer(4, 7, &[(4096, 0), (512, 0)]), excess.clone()),
        (answer(4, 7, &[(u32::MAX, 0), (1, 0)]), excess.clone()),
        (answer(5, 7, &[(512, 0), (512, 0)]), excess.clone()),
        (answer(5, 7, &[(4097, 0)]), excess),
        (
            answer(4, 7, &[(512, 0)]).repeat(2),
            TransmissionError::RepeatedStatus,
        ),
        (
            chunk(DONE, CHUNK_NONE, 4, b""),
            TransmissionError::MissingStatus,
        ),
    ];
    for (stream, expected) in cases {
        assert_eq!(error(true, &stream), expected);
    }
}

#[test]
fn errors_that_are_none_or_malformed() {
    let broken = |payload: &[u8], chunk_type| error(true, &chunk(DONE, chunk_type, 2, payload));
    let no_error = crate::wire::error(0, "fine");
    assert_eq!(broken(&no_error, CHUNK_ERROR), TransmissionError::ZeroError);
    let message_too_long = [0, 0, 0, 5, 0, 2, b'x'];
    let expected = chunk_length(ChunkType::ERROR, 7);
    assert_eq!(broken(&message_too_long, CHUNK_ERROR), expected);
    let string_too_long = crate::wire::error(5, &"x".repeat(4097));
    assert_eq!(
        broken(&string_too_long, CHUNK_ERROR),
        chunk_length(ChunkType::ERROR, 4103)
    );
    let offset_cut_off = [&crate::wire::error(5, "12")[..], &[0; 7]].concat();
    let expected = chunk_length(ChunkType::ERROR_OFFSET, 15);
    assert_eq!(broken(&offset_cut_off, CHUNK_ERROR_OFFSET), expected);
}

/// Feeds `stream` in one piece and gives the error it ends with.
fn flood(stream: Vec<u8>) -> TransmissionError {
    let mut client = victim(true);
    client.handle_input(stream.into());
    loop {
        match client.poll_reply() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the flood was taken"),
            Err(error) => return error,
        }
    }
}

#[test]
fn what_could_go_on_for_ever_is_cut_off() {
    let errors = chunk(0, CHUNK_ERROR, 2, &crate::wire::error(5, "again"));
    let error = flood(errors.repeat(1025));
    assert_eq!(error, TransmissionError::TooManyErrors { limit: 1024 });

    let every_second_byte = |at: u64| chunk(0, CHUNK_HOLE, 2, &hole_at(512 + 2 * at, 1));
    let error = flood((0..1025).flat_map(every_second_byte).collect());
    assert_eq!(error, TransmissionError::TooManyGaps { limit: 1024 });
}
