//! Whatever a client sends while haggling, the server comes to an export, waits, or has an error,
//! and what it says stays in proportion.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nbd::server::{Handshake, HandshakeError, HandshakeEvent, HandshakeLimits};
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
    let whole = meet(pieces(stream, stream.len()));
    let split = meet(pieces(stream, piece_length(*length)));
    assert_eq!(whole, split);
});

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

type Outcome = Result<Option<Option<(String, Negotiated)>>, HandshakeError>;

fn meet(pieces: impl Iterator<Item = Bytes>) -> (Vec<u8>, Outcome) {
    let mut server = Handshake::new(exports(), LIMITS);
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
        HandshakeEvent::Aborted => None,
        HandshakeEvent::Transmission {
            export,
            transmission,
        } => {
            let negotiated = transmission.negotiated();
            assert!(negotiated.structured_replies || !negotiated.base_allocation);
            Some((export.name, negotiated))
        }
    });
    (sent, result.map(|()| end))
}
