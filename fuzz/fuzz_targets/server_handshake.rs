//! Whatever a client sends while haggling, the server comes to an export, waits, or has an error,
//! and what it says stays in proportion.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nbd::server::{Handshake, HandshakeError, HandshakeEvent, HandshakeLimits, StartTls};
use nbd::wire::TransmissionFlags;
use nbd::{Export, Negotiated};
use nbd_fuzz::{piece_length, pieces};

const LIMITS: HandshakeLimits = HandshakeLimits {
    options: 16,
    option_length: 1024,
    total: 4096,
};

fuzz_target!(|input: &[u8]| {
    let [length, stream @ ..] = input else { return };
    let length = piece_length(*length);
    let meet_plainly = |length| meet(Handshake::new(exports(), LIMITS), pieces(stream, length));
    assert_eq!(meet_plainly(stream.len()), meet_plainly(length));
    let [border, stream @ ..] = stream else { return };
    let (clear, inside) = stream.split_at(stream.len().min(usize::from(*border)));
    assert_eq!(
        meet_requiring_tls(clear, inside, stream.len()),
        meet_requiring_tls(clear, inside, length)
    );
});

/// `inside` is what comes over TLS, if that is begun.
fn meet_requiring_tls(clear: &[u8], inside: &[u8], length: usize) -> Vec<(Vec<u8>, Outcome)> {
    let server = Handshake::requiring_tls(exports(), LIMITS);
    let (sent, outcome) = meet(server, pieces(clear, length));
    let Ok(Some(End::StartTls)) = outcome else {
        assert!(!matches!(outcome, Ok(Some(End::Transmission(..)))));
        return vec![(sent, outcome)];
    };
    let mut server = Handshake::requiring_tls(exports(), LIMITS);
    let _ = server.handle_input(Bytes::copy_from_slice(clear));
    let Some(HandshakeEvent::StartTls(StartTls { handshake, .. })) = server.poll_event() else {
        panic!("the same bytes began no TLS");
    };
    let after = meet(handshake, pieces(inside, length));
    assert!(!matches!(after.1, Ok(Some(End::StartTls))));
    vec![(sent, outcome), after]
}

fn exports() -> Vec<Export> {
    let export = |name: &str| Export {
        name: name.into(),
        description: Some("for people".into()),
        size: 1 << 20,
        flags: TransmissionFlags::READ_ONLY,
        block_sizes: None,
    };
    vec![export("image"), export("other")]
}

#[derive(Debug, PartialEq)]
enum End {
    Aborted,
    StartTls,
    Transmission(String, Negotiated),
}

type Outcome = Result<Option<End>, HandshakeError>;

fn meet(mut server: Handshake, pieces: impl Iterator<Item = Bytes>) -> (Vec<u8>, Outcome) {
    let mut result = Ok(());
    for piece in pieces {
        result = server.handle_input(piece);
        if result.is_err() {
            break;
        }
    }
    let sent: Vec<u8> = std::iter::from_fn(|| server.poll_output())
        .flatten()
        .collect();
    assert!(
        sent.len() < LIMITS.options as usize * 256,
        "answers out of proportion"
    );
    let end = server.poll_event().map(|event| match event {
        HandshakeEvent::Aborted => End::Aborted,
        HandshakeEvent::StartTls(_) => End::StartTls,
        HandshakeEvent::Transmission {
            export,
            transmission,
        } => {
            let negotiated = transmission.negotiated();
            assert!(negotiated.structured_replies || !negotiated.base_allocation);
            End::Transmission(export.name, negotiated)
        }
    });
    (sent, result.map(|()| end))
}
