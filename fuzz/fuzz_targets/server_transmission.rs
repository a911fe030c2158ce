//! Whatever a client sends, a request that is not refused lies inside the export and keeps to its
//! block sizes.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nbd::server::{Incoming, Transmission, TransmissionError};
use nbd::wire::TransmissionFlags;
use nbd::{BlockSizes, Command, Export, Negotiated};
use nbd_fuzz::{piece_length, pieces};

const BLOCK_SIZES: BlockSizes = BlockSizes {
    minimum: 16,
    preferred: 512,
    maximum: 4096,
};
const SIZE: u64 = 100_000;

fuzz_target!(|input: &[u8]| {
    let [choices, flags, length, stream @ ..] = input else {
        return;
    };
    let flags = TransmissionFlags::from_bits_truncate(u16::from_be_bytes([*choices, *flags]));
    let structured = choices & 0x80 != 0;
    let export = Export {
        name: String::new(),
        description: None,
        size: SIZE,
        flags,
        block_sizes: Some(BLOCK_SIZES),
    };
    let negotiated = Negotiated {
        structured_replies: structured,
        base_allocation: structured,
    };
    let whole = meet(&export, negotiated, pieces(stream, stream.len()));
    let split = meet(&export, negotiated, pieces(stream, piece_length(*length)));
    assert_eq!(whole, split);
    for incoming in &whole.0 {
        if let Incoming::Request { command, .. } = incoming {
            check(&export, command);
        }
    }
});

type Outcome = (Vec<Incoming>, Option<TransmissionError>);

fn meet(export: &Export, negotiated: Negotiated, pieces: impl Iterator<Item = Bytes>) -> Outcome {
    let mut server = Transmission::new(export, negotiated);
    let mut all = Vec::new();
    for piece in pieces {
        server.handle_input(piece);
        loop {
            match server.poll_request() {
                Ok(Some(incoming)) => all.push(incoming),
                Ok(None) => break,
                Err(error) => return (all, Some(error)),
            }
        }
    }
    (all, None)
}

fn check(export: &Export, command: &Command) {
    let (offset, length) = (command.offset(), command.length());
    assert!(offset.checked_add(length).is_some_and(|end| end <= SIZE));
    assert!(offset.is_multiple_of(16) && length.is_multiple_of(16));
    assert!(!command.is_write() || !export.is_read_only());
    match command {
        Command::Read { .. } | Command::Write { .. } => assert!((1..=4096).contains(&length)),
        Command::Flush => assert_eq!((offset, length), (0, 0)),
        _ => assert_ne!(length, 0),
    }
}
