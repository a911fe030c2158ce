//! The client's handshake with servers of every kind.

use bytes::Bytes;
use nbd::client::{Handshake, HandshakeError, HandshakeOptions};
use nbd::wire::{OptionCode, OptionReplyCode, TransmissionFlags};
use nbd::{BlockSizes, Export, InvalidBlockSizes, InvalidString, Negotiated};

use crate::wire::*;

fn everything(export: &str) -> HandshakeOptions {
    HandshakeOptions {
        export: export.to_owned(),
        structured_replies: true,
        base_allocation: true,
    }
}

fn plain() -> HandshakeOptions {
    HandshakeOptions::default()
}

type Outcome = Result<Option<(Export, Negotiated)>, HandshakeError>;

/// What a client sends to a server that sends `pieces`, and what it comes to.
fn meet(options: &HandshakeOptions, pieces: Vec<Bytes>) -> (Vec<u8>, Outcome) {
    let mut client = Handshake::new(options.clone());
    let mut sent = Vec::new();
    let mut result = Ok(());
    for piece in pieces {
        result = client.handle_input(piece);
        sent.extend(std::iter::from_fn(|| client.poll_output()).flatten());
        if result.is_err() {
            break;
        }
    }
    let agreed = client
        .finish()
        .map(|(export, transmission)| (export, transmission.negotiated()));
    assert!(client.finish().is_none(), "the transmission is given once");
    (sent, result.map(|()| agreed))
}

/// The same, for a stream whose borders must not matter.
fn meet_split(options: &HandshakeOptions, stream: &[u8]) -> (Vec<u8>, Outcome) {
    let mut outcomes = splits(stream).map(|pieces| meet(options, pieces));
    let first = outcomes.next().unwrap();
    for outcome in outcomes {
        assert_eq!(outcome, first);
    }
    first
}

fn refusal(options: &HandshakeOptions, stream: &[u8]) -> HandshakeError {
    meet_split(options, stream).1.unwrap_err()
}

#[test]
fn everything_is_agreed_on_with_a_modern_server() {
    let stream = [
        greeting(3),
        reply(OPT_STRUCTURED_REPLY, REP_ACK, b""),
        reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &meta_context(7)),
        reply(OPT_SET_META_CONTEXT, REP_ACK, b""),
        reply(OPT_GO, REP_INFO, &info_export(1 << 40, 0b1000_0011)),
        reply(OPT_GO, REP_INFO, b"\0\x01canonical"),
        reply(OPT_GO, REP_INFO, b"\0\x02a disk\x07"),
        reply(OPT_GO, REP_INFO, &info_block_size([1, 4096, 1 << 20])),
        reply(OPT_GO, REP_INFO, b"\xff\xffof a later version"),
        reply(OPT_GO, REP_ACK, b""),
    ]
    .concat();
    let (sent, outcome) = meet_split(&everything("image"), &stream);

    let expected = [
        b"\0\0\0\x03".to_vec(),
        option(OPT_STRUCTURED_REPLY, b""),
        option(
            OPT_SET_META_CONTEXT,
            &meta_request("image", &["base:allocation"]),
        ),
        option(OPT_GO, &info_request("image", &[1, 2, 3])),
    ]
    .concat();
    assert_eq!(sent, expected);
    let export = Export {
        name: "canonical".into(),
        description: Some("a disk\u{fffd}".into()),
        size: 1 << 40,
        flags: TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::READ_ONLY
            | TransmissionFlags::SEND_DF,
        block_sizes: Some(BlockSizes {
            minimum: 1,
            preferred: 4096,
            maximum: 1 << 20,
        }),
    };
    let negotiated = Negotiated {
        structured_replies: true,
        base_allocation: true,
    };
    assert_eq!(outcome, Ok(Some((export, negotiated))));
}

#[test]
fn the_first_bytes_of_a_session_are_those_of_the_document() {
    let mut client = Handshake::new(plain());
    client
        .handle_input(Bytes::from_static(b"NBDMAGICIHAVEOPT\x00\x03"))
        .unwrap();
    let sent: Vec<u8> = std::iter::from_fn(|| client.poll_output())
        .flatten()
        .collect();
    let go = b"IHAVEOPT\0\0\0\x07\0\0\0\x0c\0\0\0\0\0\x03\0\x01\0\x02\0\x03";
    assert_eq!(sent, [b"\0\0\0\x03", &go[..]].concat());
}

#[test]
fn a_server_that_only_knows_export_name_is_asked_just_that() {
    let stream = [
        greeting(3),
        reply(OPT_STRUCTURED_REPLY, REP_ERR_UNSUP, b""),
        reply(OPT_GO, REP_ERR_UNSUP, b""),
        [&1_000_001u64.to_be_bytes()[..], b"\0\x03"].concat(),
    ]
    .concat();
    let (sent, outcome) = meet_split(&everything(""), &stream);

    let expected = [
        b"\0\0\0\x03".to_vec(),
        option(OPT_STRUCTURED_REPLY, b""),
        option(OPT_GO, &info_request("", &[1, 2, 3])),
        option(OPT_EXPORT_NAME, b""),
    ]
    .concat();
    assert_eq!(sent, expected);
    let (export, negotiated) = outcome.unwrap().unwrap();
    assert_eq!((export.size, export.is_read_only()), (1_000_001, true));
    assert_eq!((export.name.as_str(), export.block_sizes), ("", None));
    assert_eq!(negotiated, Negotiated::default());
}

#[test]
fn a_server_without_fixed_newstyle_gets_no_other_option() {
    let zeroes = [0; 124];
    let stream = [&greeting(0)[..], &4096u64.to_be_bytes(), b"\0\x01", &zeroes].concat();
    let (sent, outcome) = meet_split(&everything("disk"), &stream);
    assert_eq!(
        sent,
        [b"\0\0\0\0".to_vec(), option(OPT_EXPORT_NAME, b"disk")].concat()
    );
    let (export, _) = outcome.unwrap().unwrap();
    assert_eq!((export.name.as_str(), export.size), ("disk", 4096));

    let cut = &stream[..stream.len() - 1];
    assert_eq!(
        meet_split(&everything("disk"), cut).1,
        Ok(None),
        "a zero is still missing"
    );
}

#[test]
fn metadata_contexts_are_done_without_where_they_are_refused() {
    let go = [
        reply(OPT_GO, REP_INFO, &info_export(512, 1)),
        reply(OPT_GO, REP_ACK, b""),
    ]
    .concat();
    let refused = [
        reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &meta_context(1)),
        reply(OPT_SET_META_CONTEXT, REP_ERR_UNSUP, b"no"),
    ]
    .concat();
    let none_selected = reply(OPT_SET_META_CONTEXT, REP_ACK, b"");
    let another = [
        reply(
            OPT_SET_META_CONTEXT,
            REP_META_CONTEXT,
            b"\0\0\0\x01x-mine:all",
        ),
        reply(OPT_SET_META_CONTEXT, REP_ACK, b""),
    ]
    .concat();
    for contexts in [refused, none_selected, another] {
        let structured = reply(OPT_STRUCTURED_REPLY, REP_ACK, b"");
        let stream = [greeting(3), structured, contexts, go.clone()].concat();
        let (_, negotiated) = meet_split(&everything(""), &stream).1.unwrap().unwrap();
        assert_eq!(
            negotiated,
            Negotiated {
                structured_replies: true,
                base_allocation: false
            }
        );
    }
}

#[test]
fn flags_that_mean_nothing_in_this_session_are_dropped() {
    let stream = [
        greeting(3),
        reply(OPT_GO, REP_INFO, &info_export(512, 0xffff ^ (1 << 6))),
        reply(OPT_GO, REP_ACK, b""),
    ]
    .concat();
    let (export, _) = meet_split(&plain(), &stream).1.unwrap().unwrap();
    let without_structured_replies = TransmissionFlags::SEND_DF;
    let without_write_zeroes = TransmissionFlags::SEND_FAST_ZERO;
    let experimental = TransmissionFlags::SEND_RESIZE | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    assert!(!export.flags.intersects(without_structured_replies));
    assert!(!export.flags.intersects(without_write_zeroes));
    assert!(!export.flags.intersects(experimental));
    assert!(export.flags.contains(TransmissionFlags::SEND_TRIM));
}

#[test]
fn replies_that_came_with_the_handshake_are_kept() {
    let stream = [
        greeting(3),
        reply(OPT_GO, REP_INFO, &info_export(512, 5)),
        reply(OPT_GO, REP_ACK, b""),
        b"what comes next".to_vec(),
    ]
    .concat();
    for pieces in splits(&stream) {
        let mut client = Handshake::new(plain());
        for piece in pieces {
            client.handle_input(piece).unwrap();
        }
        let (_, mut transmission) = client.finish().unwrap();
        let error = transmission.poll_reply().unwrap_err();
        assert!(error.to_string().contains("0x77686174"), "{error}");
    }
}

#[test]
fn a_refusal_is_followed_by_abort_and_carries_the_servers_words() {
    let stream = [
        greeting(3),
        reply(OPT_GO, REP_ERR_UNKNOWN, b"try \x1b[1mother"),
    ]
    .concat();
    let (sent, outcome) = meet_split(&plain(), &stream);
    assert!(sent.ends_with(&option(OPT_ABORT, b"")));
    let error = HandshakeError::UnknownExport {
        export: String::new(),
        message: "try \u{fffd}[1mother".into(),
    };
    assert_eq!(outcome, Err(error));
}

#[test]
fn a_server_that_shuts_down_or_wants_tls_is_not_asked_on() {
    for code in [REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD] {
        let stream = [greeting(3), reply(OPT_STRUCTURED_REPLY, code, b"")].concat();
        let (sent, outcome) = meet_split(&everything(""), &stream);
        assert!(sent.ends_with(&option(OPT_ABORT, b"")));
        assert!(
            matches!(outcome, Err(HandshakeError::Refused { .. })),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_peer_that_is_no_newstyle_server_is_refused_by_its_first_bytes() {
    assert_eq!(
        refusal(&plain(), b"HTTP/1.1"),
        HandshakeError::NotNbd(0x4854_5450_2f31_2e31)
    );
    let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53";
    assert_eq!(refusal(&plain(), oldstyle), HandshakeError::Oldstyle);
    let other = b"NBDMAGIC\x00\x00\x00\x00\x00\x00\x00\x2a";
    assert_eq!(refusal(&plain(), other), HandshakeError::UnknownStyle(42));
}

#[test]
fn an_export_name_that_cannot_be_sent_is_refused_before_anything_is() {
    let error = refusal(&everything(&"x".repeat(4097)), b"N");
    assert_eq!(
        error,
        HandshakeError::ExportName(InvalidString::TooLong(4097))
    );
    assert_eq!(
        refusal(&everything("a\0b"), b"N"),
        HandshakeError::ExportName(InvalidString::Nul)
    );
}

#[test]
fn each_broken_rule_of_a_reply_has_its_error() {
    let go = |code, data: &[u8]| reply(OPT_GO, code, data);
    let length = |reply, length| HandshakeError::ReplyLength {
        option: OptionCode::GO,
        reply: OptionReplyCode(reply),
        length,
    };
    let export = |size, flags| [go(REP_INFO, &info_export(size, flags)), go(REP_ACK, b"")].concat();
    let sizes = |sizes| go(REP_INFO, &info_block_size(sizes));
    let long = |info: &[u8]| go(REP_INFO, &[info, &[b'x'; 4097]].concat());
    let cases = [
        (
            b"not a reply to an option".to_vec(),
            HandshakeError::ReplyMagic(0x6e6f_7420_6120_7265),
        ),
        (
            reply(OPT_LIST, REP_ACK, b""),
            HandshakeError::OtherOption {
                asked: OptionCode::GO,
                answered: OptionCode::LIST,
            },
        ),
        (
            go(REP_SERVER, b""),
            HandshakeError::UnexpectedReply {
                option: OptionCode::GO,
                reply: OptionReplyCode::SERVER,
            },
        ),
        (go(REP_ACK, b"x"), length(REP_ACK, 1)),
        (go(REP_INFO, b"\0"), length(REP_INFO, 1)),
        (go(REP_INFO, &info_export(1, 1)[..11]), length(REP_INFO, 11)),
        (
            go(REP_INFO, &info_block_size([1, 512, 512])[..13]),
            length(REP_INFO, 13),
        ),
        (go(REP_ACK, b""), HandshakeError::MissingExportInfo),
        (export(512, 2), HandshakeError::MissingHasFlags(2)),
        (export(1 << 63, 1), HandshakeError::ExportTooLarge(1 << 63)),
        (
            go(REP_INFO, b"\0\x01\xff"),
            HandshakeError::InvalidString(InvalidString::NotUtf8),
        ),
        (
            long(b"\0\x01"),
            HandshakeError::InvalidString(InvalidString::TooLong(4097)),
        ),
        (
            long(b"\0\x02"),
            HandshakeError::InvalidString(InvalidString::TooLong(4097)),
        ),
        (sizes([3, 4096, 4096]), InvalidBlockSizes::Minimum(3).into()),
        (
            sizes([1 << 17, 1 << 17, 1 << 17]),
            InvalidBlockSizes::Minimum(1 << 17).into(),
        ),
        (
            sizes([1, 256, 4096]),
            InvalidBlockSizes::Preferred {
                minimum: 1,
                preferred: 256,
            }
            .into(),
        ),
        (
            sizes([1024, 512, 4096]),
            InvalidBlockSizes::Preferred {
                minimum: 1024,
                preferred: 512,
            }
            .into(),
        ),
        (
            sizes([1, 4096, 512]),
            InvalidBlockSizes::Maximum {
                preferred: 4096,
                maximum: 512,
            }
            .into(),
        ),
    ];
    for (bytes, error) in cases {
        let stream = [greeting(3), bytes].concat();
        assert_eq!(meet(&plain(), vec![stream.into()]).1, Err(error));
    }
}

#[test]
fn a_length_field_is_refused_rather_than_waited_for() {
    let mut header = reply(OPT_GO, REP_INFO, b"");
    header[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    let error = refusal(&plain(), &[greeting(3), header].concat());
    assert!(
        matches!(
            error,
            HandshakeError::ReplyLength {
                length: u32::MAX,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn replies_without_an_end_are_cut_off() {
    let info = reply(OPT_GO, REP_INFO, &info_export(512, 1));
    let stream = [greeting(3), info.repeat(65)].concat();
    let error = meet(&plain(), vec![stream.into()]).1.unwrap_err();
    assert!(
        matches!(error, HandshakeError::TooManyReplies { .. }),
        "{error}"
    );
}

#[test]
fn after_an_error_every_further_input_is_the_same_error() {
    let mut client = Handshake::new(plain());
    let error = client
        .handle_input(Bytes::from_static(b"HTTP/1.1 200"))
        .unwrap_err();
    assert_eq!(client.handle_input(greeting(3).into()), Err(error));
}
