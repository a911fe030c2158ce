//! Whatever a server sends while haggling, the client agrees on an export that keeps the rules,
//! waits, or has an error.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nbd::client::{Handshake, HandshakeError, HandshakeOptions};
use nbd::wire::{MAX_EXPORT_SIZE, MAX_STRING_LENGTH, TransmissionFlags};
use nbd::{Export, Negotiated};
use nbd_fuzz::{piece_length, pieces};

fuzz_target!(|input: &[u8]| {
    let [choices, length, stream @ ..] = input else {
        return;
    };
    let options = HandshakeOptions {
        export: if choices & 4 != 0 {
            "image".into()
        } else {
            String::new()
        },
        structured_replies: choices & 1 != 0,
        base_allocation: choices & 2 != 0,
    };
    let whole = meet(&options, pieces(stream, stream.len()));
    let split = meet(&options, pieces(stream, piece_length(*length)));
    assert_eq!(whole, split);
    if let (_, Ok(Some((export, negotiated)))) = whole {
        check(&export, negotiated);
    }
});

type Outcome = Result<Option<(Export, Negotiated)>, HandshakeError>;

fn meet(options: &HandshakeOptions, pieces: impl Iterator<Item = Bytes>) -> (Vec<u8>, Outcome) {
    let mut client = Handshake::new(options.clone());
    let mut result = Ok(());
    for piece in pieces {
        result = client.handle_input(piece);
        if result.is_err() {
            break;
        }
    }
    let sent: Vec<u8> = std::iter::from_fn(|| client.poll_output())
        .flatten()
        .collect();
    assert!(sent.len() < 1000, "a client has little to say");
    let agreed = client
        .finish()
        .map(|(export, transmission)| (export, transmission.negotiated()));
    (sent, result.map(|()| agreed))
}

fn check(export: &Export, negotiated: Negotiated) {
    assert!(export.size <= MAX_EXPORT_SIZE);
    assert!(export.name.len() <= MAX_STRING_LENGTH);
    assert!(export.flags.contains(TransmissionFlags::HAS_FLAGS));
    assert!(export.effective_block_sizes().validate().is_ok());
    assert!(negotiated.structured_replies || !negotiated.base_allocation);
    assert!(negotiated.structured_replies || !export.flags.contains(TransmissionFlags::SEND_DF));
}
