//! Whatever a page sends once its WebSocket is open, the machine gets a disk of its size, waits, or the link ends with
//! a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_fuzz::{piece_length, pieces};
use nbd_proxy::fuzzing::{Received, websocket};

fuzz_target!(|input: &[u8]| {
    let [choices, length, stream @ ..] = input else {
        return;
    };
    let v1 = choices & 1 != 0;
    let whole = websocket(v1, pieces(stream, stream.len()));
    let split = websocket(v1, pieces(stream, piece_length(*length)));
    assert_eq!(whole, split);
    check(&whole, stream.len());
});

fn check(received: &Received, sent: usize) {
    assert!(received.ended.is_some(), "a session without an end");
    assert!(received.sent < 64 + sent, "more was said than was heard");
    if let Some((code, reason)) = &received.closed {
        assert!(matches!(code, 1000..=1002 | 4400..=4499), "{code} {reason}");
        assert!(reason.len() <= 123 && (*code == 1000 || !reason.is_empty()));
    }
    match received.size {
        None => assert!(received.reads.is_empty()),
        Some(size) => {
            assert!((1..1 << 63).contains(&size));
            assert_eq!(received.reads.len(), 2, "a read without an answer");
        }
    }
    for data in received.reads.iter().flatten() {
        assert!(matches!(data.len(), 512 | 4096));
    }
}
