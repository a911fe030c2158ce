//! The server's handshake with clients of every kind.

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeError, HandshakeEvent, HandshakeLimits};
use nbd::wire::TransmissionFlags;
use nbd::{BlockSizes, Export, InvalidString, Negotiated};

use crate::wire::*;

const FIXED: &[u8] = &[0, 0, 0, 1];
const FIXED_NO_ZEROES: &[u8] = &[0, 0, 0, 3];

fn exports() -> Vec<Export> {
    let image = Export {
        name: "image".into(),
        description: Some("an image".into()),
        size: 1 << 20,
        flags: TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN,
        block_sizes: Some(BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 1 << 20,
        }),
    };
    let other = Export {
        name: "other".into(),
        description: None,
        block_sizes: None,
        ..image
    };
    vec![image, other]
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Open,
    Aborted,
    Transmission(String, Negotiated),
}

/// What a server answers, without its greeting, and what it comes to.
fn meet(limits: HandshakeLimits, pieces: Vec<Bytes>) -> (Vec<u8>, Result<End, HandshakeError>) {
    let mut server = Handshake::new(exports(), limits);
    assert_eq!(server.poll_output().unwrap(), greeting(3));
    let mut sent = Vec::new();
    let mut result = Ok(());
    for piece in pieces {
        result = server.handle_input(piece);
        sent.extend(std::iter::from_fn(|| server.poll_output()).flatten());
        if result.is_err() {
            break;
        }
    }
    let end = match server.poll_event() {
        None => End::Open,
        Some(HandshakeEvent::Aborted) => End::Aborted,
        Some(HandshakeEvent::StartTls(_)) => panic!("TLS was not offered"),
        Some(HandshakeEvent::Transmission {
            export,
            transmission,
        }) => End::Transmission(export.name, transmission.negotiated()),
    };
    assert!(server.poll_event().is_none(), "an event is given once");
    (sent, result.map(|()| end))
}

fn meet_split(stream: &[u8]) -> (Vec<u8>, Result<End, HandshakeError>) {
    let mut outcomes = splits(stream).map(|pieces| meet(HandshakeLimits::default(), pieces));
    let first = outcomes.next().unwrap();
    for outcome in outcomes {
        assert_eq!(outcome, first);
    }
    first
}

/// The answer to options after which haggling goes on.
fn answer(options: &[Vec<u8>]) -> Vec<u8> {
    let (sent, end) = meet_split(&[FIXED_NO_ZEROES.to_vec(), options.concat()].concat());
    assert_eq!(end, Ok(End::Open));
    sent
}

/// The type of the last reply.
fn last_code(mut sent: &[u8]) -> u32 {
    loop {
        let (header, data) = sent.split_at(20);
        let field = |at| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        sent = &data[field(16) as usize..];
        if sent.is_empty() {
            return field(12);
        }
    }
}

fn structured() -> Vec<u8> {
    option(OPT_STRUCTURED_REPLY, b"")
}

#[test]
fn go_tells_what_was_asked_and_begins_transmission() {
    let stream = [
        FIXED_NO_ZEROES,
        &option(OPT_GO, &info_request("image", &[1, 2, 3, 99])),
    ]
    .concat();
    let (sent, end) = meet_split(&stream);
    let expected = [
        reply(OPT_GO, REP_INFO, &info_export(1 << 20, 0b1_0000_0011)),
        reply(OPT_GO, REP_INFO, b"\0\x01image"),
        reply(OPT_GO, REP_INFO, b"\0\x02an image"),
        reply(OPT_GO, REP_INFO, &info_block_size([512, 4096, 1 << 20])),
        reply(OPT_GO, REP_ACK, b""),
    ]
    .concat();
    assert_eq!(sent, expected);
    assert_eq!(
        end,
        Ok(End::Transmission("image".into(), Negotiated::default()))
    );
}

#[test]
fn info_tells_the_same_and_haggling_goes_on() {
    let sent = answer(&[option(OPT_INFO, &info_request("other", &[3]))]);
    let expected = [
        reply(OPT_INFO, REP_INFO, &info_export(1 << 20, 0b1_0000_0011)),
        reply(OPT_INFO, REP_INFO, &info_block_size([1, 4096, 1 << 25])),
        reply(OPT_INFO, REP_ACK, b""),
    ]
    .concat();
    assert_eq!(
        sent, expected,
        "the default block sizes where the export has none"
    );
}

#[test]
fn the_empty_name_is_the_first_export() {
    let stream = [FIXED, &option(OPT_GO, &info_request("", &[1]))].concat();
    let (sent, end) = meet_split(&stream);
    assert_eq!(
        end,
        Ok(End::Transmission("image".into(), Negotiated::default()))
    );
    let told = sent.windows(7).any(|window| window == b"\0\x01image");
    assert!(told, "the canonical name is told");
}

#[test]
fn export_name_is_answered_with_or_without_zeroes() {
    let size_and_flags = [&(1u64 << 20).to_be_bytes()[..], &[1, 3]].concat();
    for (flags, zeroes) in [(&[0, 0, 0, 0][..], 124), (FIXED, 124), (FIXED_NO_ZEROES, 0)] {
        let (sent, end) = meet_split(&[flags, &option(OPT_EXPORT_NAME, b"other")].concat());
        assert_eq!(sent, [&size_and_flags[..], &vec![0; zeroes]].concat());
        assert_eq!(
            end,
            Ok(End::Transmission("other".into(), Negotiated::default()))
        );
    }
}

#[test]
fn export_name_that_cannot_be_satisfied_ends_the_session() {
    let end = |name: &[u8]| meet_split(&[FIXED, &option(OPT_EXPORT_NAME, name)].concat()).1;
    assert_eq!(
        end(b"nothing"),
        Err(HandshakeError::UnknownExport("nothing".into()))
    );
    assert_eq!(
        end(b"\xff"),
        Err(HandshakeError::ExportName(InvalidString::NotUtf8))
    );
    let long = HandshakeError::ExportName(InvalidString::TooLong(4097));
    let stream = [FIXED, &option(OPT_EXPORT_NAME, &[b'x'; 4097])].concat();
    assert_eq!(
        meet(HandshakeLimits::default(), vec![stream.into()]).1,
        Err(long)
    );
}

#[test]
fn abort_is_acknowledged_whatever_comes_with_it_or_after_it() {
    let stream = [FIXED, &option(OPT_ABORT, b"bye"), b"noise"].concat();
    let (sent, end) = meet_split(&stream);
    assert_eq!(
        (sent, end),
        (reply(OPT_ABORT, REP_ACK, b""), Ok(End::Aborted))
    );
}

#[test]
fn list_names_every_export() {
    let expected = [
        reply(OPT_LIST, REP_SERVER, b"\0\0\0\x05imagean image"),
        reply(OPT_LIST, REP_SERVER, b"\0\0\0\x05other"),
        reply(OPT_LIST, REP_ACK, b""),
    ]
    .concat();
    assert_eq!(answer(&[option(OPT_LIST, b"")]), expected);
}

#[test]
fn structured_replies_bring_df() {
    let go = option(OPT_GO, &info_request("image", &[]));
    let (sent, end) = meet_split(&[FIXED, &structured(), &go].concat());
    let expected = [
        reply(OPT_STRUCTURED_REPLY, REP_ACK, b""),
        reply(OPT_GO, REP_INFO, &info_export(1 << 20, 0b1_1000_0011)),
        reply(OPT_GO, REP_ACK, b""),
    ]
    .concat();
    assert_eq!(sent, expected);
    let negotiated = Negotiated {
        structured_replies: true,
        base_allocation: false,
    };
    assert_eq!(end, Ok(End::Transmission("image".into(), negotiated)));
}

#[test]
fn metadata_contexts_hold_for_the_export_they_were_selected_for() {
    let select = |name| {
        option(
            OPT_SET_META_CONTEXT,
            &meta_request(name, &["base:allocation"]),
        )
    };
    let nothing = option(OPT_SET_META_CONTEXT, &meta_request("image", &[]));
    let broken = option(OPT_SET_META_CONTEXT, b"");
    let go = option(OPT_GO, &info_request("image", &[]));
    let cases = [
        (vec![select("image")], true),
        (vec![select("")], true),
        (vec![select("other")], false),
        (vec![select("image"), nothing], false),
        (vec![select("image"), broken], false),
        (vec![select("image"), select("nothing")], false),
    ];
    for (options, expected) in cases {
        let stream = [FIXED, &structured(), &options.concat(), &go].concat();
        let Ok(End::Transmission(_, negotiated)) = meet_split(&stream).1 else {
            panic!()
        };
        assert_eq!(negotiated.base_allocation, expected);
    }
}

#[test]
fn contexts_are_listed_by_wildcard_and_selected_by_name() {
    let listed = |queries: &[&str]| {
        let ask = option(OPT_LIST_META_CONTEXT, &meta_request("image", queries));
        let sent = answer(&[structured(), ask]);
        let found = reply(OPT_LIST_META_CONTEXT, REP_META_CONTEXT, &meta_context(0));
        sent.windows(found.len())
            .filter(|window| *window == found)
            .count()
    };
    assert_eq!(listed(&[]), 1);
    assert_eq!(listed(&["base:"]), 1);
    assert_eq!(listed(&["base:allocation", "base:"]), 1);
    assert_eq!(listed(&["x-mine:all", "base:other"]), 0);

    let selected = |queries: &[&str]| {
        let ask = option(OPT_SET_META_CONTEXT, &meta_request("image", queries));
        answer(&[structured(), ask]).len() > 2 * 20
    };
    assert!(selected(&["x-mine:all", "base:allocation"]));
    assert!(!selected(&["base:"]));
}

#[test]
fn options_are_refused_with_the_error_that_fits() {
    let meta =
        |option_code, name, queries: &[&str]| option(option_code, &meta_request(name, queries));
    let long_query = format!("base:{}", "x".repeat(4096));
    let cases = [
        (vec![option(OPT_STARTTLS, b"")], REP_ERR_UNSUP),
        (vec![option(OPT_STARTTLS, b"x")], REP_ERR_INVALID),
        (vec![option(OPT_EXTENDED_HEADERS, b"")], REP_ERR_UNSUP),
        (vec![option(4, b"")], REP_ERR_UNSUP),
        (
            vec![option(0xdead_beef, b"whatever it means")],
            REP_ERR_UNSUP,
        ),
        (vec![option(0xdead_beef, &[0; 70_000])], REP_ERR_UNSUP),
        (vec![option(OPT_LIST, b"x")], REP_ERR_INVALID),
        (vec![option(OPT_STRUCTURED_REPLY, b"x")], REP_ERR_INVALID),
        (
            vec![option(OPT_GO, &info_request("nothing", &[]))],
            REP_ERR_UNKNOWN,
        ),
        (vec![option(OPT_INFO, b"")], REP_ERR_INVALID),
        (
            vec![option(OPT_GO, b"\xff\xff\xff\xff\0\0")],
            REP_ERR_INVALID,
        ),
        (vec![option(OPT_GO, b"\0\0\0\0\0\x02\0\0")], REP_ERR_INVALID),
        (
            vec![option(OPT_GO, &info_request(&"x".repeat(4097), &[]))],
            REP_ERR_TOO_BIG,
        ),
        (vec![option(OPT_GO, &[0; 70_000])], REP_ERR_TOO_BIG),
        (
            vec![meta(OPT_SET_META_CONTEXT, "", &["base:allocation"])],
            REP_ERR_INVALID,
        ),
        (vec![meta(OPT_LIST_META_CONTEXT, "", &[])], REP_ERR_INVALID),
        (
            vec![structured(), meta(OPT_LIST_META_CONTEXT, "nothing", &[])],
            REP_ERR_UNKNOWN,
        ),
        (
            vec![
                structured(),
                meta(OPT_SET_META_CONTEXT, "", &["allocation"]),
            ],
            REP_ERR_INVALID,
        ),
        (
            vec![structured(), meta(OPT_SET_META_CONTEXT, "", &[&long_query])],
            REP_ERR_TOO_BIG,
        ),
        (
            vec![structured(), option(OPT_SET_META_CONTEXT, &[0; 9])],
            REP_ERR_INVALID,
        ),
    ];
    for (options, expected) in cases {
        let stream: Bytes = [FIXED.to_vec(), options.concat()].concat().into();
        let (sent, end) = meet(HandshakeLimits::default(), vec![stream]);
        assert_eq!(end, Ok(End::Open));
        assert_eq!(last_code(&sent), expected, "{options:x?}");
    }
}

#[test]
fn haggling_goes_on_after_refusals() {
    let unknown = option(99, b"data");
    let empty_go = option(OPT_GO, b"");
    assert_eq!(
        last_code(&answer(&[unknown, empty_go, structured()])),
        REP_ACK
    );
}

#[test]
fn a_client_that_breaks_the_protocol_is_dropped() {
    let end = |stream: &[u8]| meet_split(stream).1.unwrap_err();
    assert_eq!(end(&[0, 0, 0, 5]), HandshakeError::ClientFlags(5));
    let magic = HandshakeError::OptionMagic(0x4e42_444d_4147_4943);
    assert_eq!(end(&[FIXED, b"NBDMAGIC\0\0\0\0\0\0\0\0"].concat()), magic);
}

#[test]
fn options_are_limited_in_number_and_in_bytes() {
    let limits = HandshakeLimits {
        options: 3,
        option_length: 16,
        total: 100,
    };
    let end = |stream: Vec<u8>| {
        let stream = [FIXED.to_vec(), stream].concat();
        meet(limits, vec![stream.into()]).1
    };
    assert_eq!(end(option(OPT_LIST, b"").repeat(3)), Ok(End::Open));
    let too_many = Err(HandshakeError::TooManyOptions(3));
    assert_eq!(end(option(OPT_LIST, b"").repeat(4)), too_many);
    assert_eq!(end(option(99, &[0; 84])), Ok(End::Open));
    assert_eq!(
        end(option(99, &[0; 85])),
        Err(HandshakeError::TooManyBytes(100))
    );
    let mut endless = option(99, b"");
    endless[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(
        end(endless),
        Err(HandshakeError::TooManyBytes(100)),
        "judged by the header"
    );
}

#[test]
fn requests_that_came_with_the_handshake_are_kept() {
    let go = option(OPT_GO, &info_request("image", &[]));
    let stream = [FIXED, &go, &request(0, CMD_DISC, 0, 0, 0)].concat();
    for pieces in splits(&stream) {
        let mut server = Handshake::new(exports(), HandshakeLimits::default());
        for piece in pieces {
            server.handle_input(piece).unwrap();
        }
        let Some(HandshakeEvent::Transmission {
            mut transmission, ..
        }) = server.poll_event()
        else {
            panic!("no transmission");
        };
        assert_eq!(
            transmission.poll_request(),
            Ok(Some(nbd::server::Incoming::Disconnect))
        );
    }
}

#[test]
fn a_server_without_exports_refuses_politely() {
    let mut server = Handshake::new(Vec::new(), HandshakeLimits::default());
    server.poll_output();
    let go = option(OPT_GO, &info_request("", &[]));
    server.handle_input([FIXED, &go].concat().into()).unwrap();
    let sent = server.poll_output().unwrap();
    assert_eq!(sent[12..16], REP_ERR_UNKNOWN.to_be_bytes());
}
