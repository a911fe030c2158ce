//! A server that requires TLS (proto.md, "FORCEDTLS mode"), and clients that would have it otherwise. What TLS itself
//! does is not seen from here: what came over it is fed in as it is.

use bytes::Bytes;
use nbd::server::{Handshake, HandshakeError, HandshakeEvent, HandshakeLimits, StartTls};
use nbd::wire::TransmissionFlags;
use nbd::{Export, Negotiated};

use crate::wire::*;

const FIXED_NO_ZEROES: &[u8] = &[0, 0, 0, 3];

fn server() -> Handshake {
    let image = Export {
        name: "image".into(),
        description: None,
        size: 1 << 20,
        flags: TransmissionFlags::READ_ONLY,
        block_sizes: None,
    };
    let mut server = Handshake::requiring_tls(vec![image], HandshakeLimits::default());
    assert_eq!(server.poll_output().unwrap(), greeting(3));
    server
}

fn output(server: &mut Handshake) -> Vec<u8> {
    std::iter::from_fn(|| server.poll_output())
        .flatten()
        .collect()
}

/// What is answered in the clear to options after which nothing but haggling goes on, however they are split.
fn answer(options: &[Vec<u8>]) -> Vec<u8> {
    let stream = [FIXED_NO_ZEROES, &options.concat()].concat();
    let mut answers = splits(&stream).map(|pieces| {
        let mut server = server();
        for piece in pieces {
            server.handle_input(piece).unwrap();
        }
        assert!(server.poll_event().is_none());
        output(&mut server)
    });
    let first = answers.next().unwrap();
    assert!(answers.all(|answer| answer == first));
    first
}

/// The code of each reply.
fn codes(mut sent: &[u8]) -> Vec<u32> {
    let mut codes = Vec::new();
    while let Some((header, rest)) = sent.split_at_checked(20) {
        let field = |at| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        codes.push(field(12));
        sent = &rest[field(16) as usize..];
    }
    codes
}

/// Why a connection ends, however its bytes are split.
fn end(stream: &[u8]) -> HandshakeError {
    let mut ends = splits(stream).map(|pieces| {
        let mut server = server();
        let error = pieces
            .into_iter()
            .find_map(|piece| server.handle_input(piece).err());
        assert!(server.poll_event().is_none());
        assert_eq!(output(&mut server), b"", "nothing was said on the way");
        error.unwrap()
    });
    let first = ends.next().unwrap();
    assert!(ends.all(|end| end == first));
    first
}

/// What the client did before comes first; then the server is inside of TLS.
fn begin_tls(before: &[Vec<u8>]) -> Handshake {
    let mut server = server();
    let stream = [
        FIXED_NO_ZEROES,
        &before.concat(),
        &option(OPT_STARTTLS, b""),
    ]
    .concat();
    server.handle_input(stream.into()).unwrap();
    output(&mut server);
    let Some(HandshakeEvent::StartTls(StartTls {
        acknowledgement,
        mut handshake,
    })) = server.poll_event()
    else {
        panic!("no TLS");
    };
    assert_eq!(acknowledgement, reply(OPT_STARTTLS, REP_ACK, b""));
    assert!(server.poll_event().is_none(), "an event is given once");
    assert_eq!(output(&mut handshake), b"", "there is one greeting");
    handshake
}

fn go() -> Vec<u8> {
    option(OPT_GO, &info_request("image", &[]))
}

#[test]
fn tls_is_acknowledged_and_haggling_goes_on_inside_of_it() {
    let mut server = begin_tls(&[]);
    server.handle_input(go().into()).unwrap();
    let expected = [
        reply(OPT_GO, REP_INFO, &info_export(1 << 20, 0b11)),
        reply(OPT_GO, REP_ACK, b""),
    ];
    assert_eq!(output(&mut server), expected.concat());
    assert!(matches!(
        server.poll_event(),
        Some(HandshakeEvent::Transmission { export, .. }) if export.name == "image"
    ));
}

#[test]
fn the_clients_flags_are_those_that_it_sent_before() {
    let mut server = begin_tls(&[]);
    server
        .handle_input(option(OPT_EXPORT_NAME, b"image").into())
        .unwrap();
    assert_eq!(output(&mut server).len(), 10, "no zeroes follow");
}

#[test]
fn everything_but_abort_is_told_to_begin_tls() {
    let options = [
        go(),
        option(OPT_INFO, &info_request("nothing", &[])),
        option(OPT_LIST, b""),
        option(OPT_LIST, b"data that it must not have"),
        option(OPT_STRUCTURED_REPLY, b""),
        option(OPT_SET_META_CONTEXT, &meta_request("image", &[])),
        option(OPT_EXTENDED_HEADERS, b""),
        option(99, &[0; 70_000]),
    ];
    let sent = answer(&options[..7]);
    assert_eq!(codes(&sent), [REP_ERR_TLS_REQD; 7]);
    assert!(!sent.windows(5).any(|word| word == b"image"), "no names");
    let mut server = server();
    let stream = [FIXED_NO_ZEROES, &options[7]].concat();
    server.handle_input(stream.into()).unwrap();
    assert_eq!(codes(&output(&mut server)), [REP_ERR_TLS_REQD]);
}

#[test]
fn abort_is_obeyed_without_tls() {
    let mut server = server();
    let stream = [FIXED_NO_ZEROES, &option(OPT_ABORT, b"")].concat();
    server.handle_input(stream.into()).unwrap();
    assert_eq!(codes(&output(&mut server)), [REP_ACK]);
    assert!(matches!(server.poll_event(), Some(HandshakeEvent::Aborted)));
}

#[test]
fn a_request_for_tls_that_has_data_is_refused_and_may_be_repeated_without() {
    assert_eq!(
        codes(&answer(&[option(OPT_STARTTLS, b"x")])),
        [REP_ERR_INVALID]
    );
    begin_tls(&[option(OPT_STARTTLS, b"x"), go()]);
}

#[test]
fn downgrade_an_export_by_name_without_tls_ends_the_connection() {
    for name in ["image", "", "nothing"] {
        let stream = [FIXED_NO_ZEROES, &option(OPT_EXPORT_NAME, name.as_bytes())].concat();
        assert_eq!(end(&stream), HandshakeError::TlsRequired);
    }
}

#[test]
fn downgrade_a_client_without_fixed_newstyle_ends_the_connection() {
    for flags in [[0, 0, 0, 0], [0, 0, 0, 2]] {
        assert_eq!(end(&flags), HandshakeError::TlsRequired);
    }
}

#[test]
fn starttls_injection_what_follows_in_the_clear_is_never_taken_for_the_clients() {
    for injected in [&go()[..], b"I", b"\x16\x03\x01"] {
        let starttls = option(OPT_STARTTLS, b"");
        let stream = [FIXED_NO_ZEROES, &starttls, injected].concat();
        assert_eq!(end(&stream), HandshakeError::PlaintextAfterStartTls);
    }
}

#[test]
fn starttls_twice_the_second_is_invalid_and_tls_goes_on() {
    let mut server = begin_tls(&[]);
    for _ in 0..2 {
        server
            .handle_input(option(OPT_STARTTLS, b"").into())
            .unwrap();
        assert_eq!(codes(&output(&mut server)), [REP_ERR_INVALID]);
        assert!(server.poll_event().is_none());
    }
    server.handle_input(go().into()).unwrap();
    assert_eq!(codes(&output(&mut server)), [REP_INFO, REP_ACK]);
}

#[test]
fn tls_is_never_required_of_a_client_that_speaks_it() {
    let mut server = begin_tls(&[go(), option(OPT_LIST, b"")]);
    let options = [option(OPT_LIST, b""), option(99, b""), option(OPT_GO, b"")];
    server.handle_input(options.concat().into()).unwrap();
    let codes = codes(&output(&mut server));
    assert_eq!(codes.len(), 4);
    assert!(!codes.contains(&REP_ERR_TLS_REQD), "{codes:x?}");
}

#[test]
fn nothing_that_was_agreed_on_in_the_clear_holds_inside_of_tls() {
    let before = [
        option(OPT_STRUCTURED_REPLY, b""),
        option(
            OPT_SET_META_CONTEXT,
            &meta_request("image", &["base:allocation"]),
        ),
    ];
    let mut server = begin_tls(&before);
    server.handle_input(go().into()).unwrap();
    let Some(HandshakeEvent::Transmission { transmission, .. }) = server.poll_event() else {
        panic!("no transmission");
    };
    assert_eq!(transmission.negotiated(), Negotiated::default());
}

#[test]
fn the_limits_hold_over_both_parts() {
    let limits = HandshakeLimits {
        options: 4,
        ..HandshakeLimits::default()
    };
    let mut server = Handshake::requiring_tls(Vec::new(), limits);
    let stream = [
        FIXED_NO_ZEROES,
        &option(OPT_LIST, b"").repeat(2),
        &option(OPT_STARTTLS, b""),
    ];
    server.handle_input(stream.concat().into()).unwrap();
    let Some(HandshakeEvent::StartTls(StartTls { mut handshake, .. })) = server.poll_event() else {
        panic!("no TLS");
    };
    let list = Bytes::from(option(OPT_LIST, b""));
    assert_eq!(handshake.handle_input(list.clone()), Ok(()));
    let error = handshake.handle_input(list).unwrap_err();
    assert_eq!(error, HandshakeError::TooManyOptions(4));
}
