//! A page that abuses WebSocket.

use std::{
    io::{ErrorKind, Write as _},
    thread,
    time::Duration,
};

use super::{
    arena::{Arena, PLACE, SIZE, image},
    page::{
        BINARY, CLOSE, CONTINUATION, FINAL, Kind, PING, PONG, Page, TEXT, frame, frame_head, simple,
    },
};
use crate::disk::Disk;

/// More than anybody has to say who was not asked for anything, in bytes.
const LONG: u64 = (256 << 10) + 1;

/// The page sends these bytes over a link that serves. The link ends with `code`; the session is held and goes on with
/// an honest page.
#[track_caller]
fn ends_the_link(code: u16, attacks: &[Vec<u8>]) {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, false);
        for attack in attacks {
            page.send(attack);
            let (closed, reason) = page.closed();
            assert_eq!(closed, code, "{attack:x?}: {reason}");
            arena.server.wait_for_state("held");
            page = arena.resumed(kind);
        }
        drop(page);
        arena.survives();
    }
}

/// Defence: crates/nbd-proxy/src/link/websocket/mod.rs, `accept`: the limit of a message, judged by its head.
#[test]
fn a_frame_that_promises_2_to_the_63_bytes() {
    ends_the_link(
        1009,
        &[
            frame_head(BINARY, 1 << 63),
            frame_head(BINARY, u64::MAX),
            frame_head(BINARY, 1 << 32),
            frame_head(TEXT, 1 << 30),
        ],
    );
}

/// Defence: the same: until a link has shown the session's image it is trusted with short messages alone
/// (`LinkCommand::Trust`).
#[test]
fn a_long_message_before_the_image_is_shown() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60, \"cache\": 0", 30);
        let is_refused = || {
            let mut page = arena.page(kind);
            page.announce(SIZE as u64);
            page.send(&frame_head(BINARY, LONG));
            page.is_closed_with(1009, "");
        };
        is_refused();
        arena.server.wait_until_free();
        let page = arena.attached(kind, false);
        answers_in_a_long_message(&arena, page);
        arena.server.wait_for_state("held");
        is_refused();
        assert_eq!(arena.server.session()["state"], "held");
        answers_in_a_long_message(&arena, arena.resumed(kind));
        arena.survives();
    }
}

/// Who has shown the image may answer as long as they were asked.
fn answers_in_a_long_message(arena: &Arena, mut page: Page) {
    let mut disk = Disk::connect(&arena.server.device());
    let reading = thread::spawn(move || disk.read(0, u32::try_from(SIZE).unwrap()));
    let asked = page.asked_for(&image(SIZE), PLACE);
    assert!(u64::from(asked.length) > LONG, "{asked:?}");
    page.answer(&image(SIZE), asked);
    page.serve_until(&image(SIZE), || reading.is_finished());
    assert!(reading.join().unwrap().unwrap()[..] == image(SIZE)[..]);
}

/// Defence: the same, for a message in parts.
#[test]
fn a_message_of_parts_without_end() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, false);
        page.frame(BINARY - FINAL, b"x");
        page.flood(&frame(CONTINUATION - FINAL, &[0; 1 << 16]));
        page.is_closed_with(1009, "");
        arena.server.wait_for_state("held");
        arena.survives();
    }
}

/// Defence: crates/nbd-session/src/session/serve.rs, `expire`: parts of nothing are no answer.
#[test]
fn a_message_of_empty_parts_without_end() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60", 1);
        let mut page = arena.attached(kind, false);
        let reader = arena.reader();
        page.asked_for(&image(SIZE), PLACE);
        page.frame(BINARY - FINAL, b"");
        page.flood(&frame(CONTINUATION - FINAL, b"").repeat(100));
        page.is_closed_with(4408, "not answered within 1 s");
        arena.resumed_by_an_honest_page(kind, reader);
        arena.survives();
    }
}

/// Defence: RFC 6455, section 5.1, kept by tokio-websockets in the role of a server.
#[test]
fn a_frame_without_a_mask() {
    ends_the_link(1002, &[vec![BINARY, 1, 7], vec![PING, 0]]);
}

/// Defence: RFC 6455, section 5.2, kept by tokio-websockets: no extension was agreed on, so nothing is ever inflated.
#[test]
fn a_compressed_frame() {
    // Without these bits it would be an empty message, which harms nobody.
    let attacks = [0x40, 0x20, 0x10].map(|reserved| frame(BINARY | reserved, b""));
    ends_the_link(1002, &attacks);
}

/// Defence: RFC 6455, sections 5.2, 5.4 and 5.5, kept by tokio-websockets.
#[test]
fn a_frame_that_cannot_be() {
    ends_the_link(
        1002,
        &[
            frame(0x83, b"x"),
            frame(0x8b, b""),
            frame(CONTINUATION, b"of nothing"),
            [frame(BINARY - FINAL, b"x"), frame(BINARY, b"y")].concat(),
            frame(PING - FINAL, b""),
            frame(PING, &[0; 126]),
            frame(CLOSE, b"\x03"),
        ],
    );
}

/// Defence: RFC 6455, section 7.4, kept by tokio-websockets: no page can pretend that its close was clean, or none.
#[test]
fn a_close_frame_with_a_code_that_cannot_be() {
    let attacks = [0_u16, 999, 1004, 1005, 1006, 1015, 5000, u16::MAX]
        .map(|code| frame(CLOSE, &code.to_be_bytes()));
    ends_the_link(1002, &attacks);
}

/// Defence: crates/nbd-proxy/src/link/websocket/socket.rs, `End::closing`: only 1000 and 1005 end a session.
#[test]
fn a_close_frame_with_a_weird_code_and_reason() {
    for (code, reason) in [
        (3000_u16, &b"\x1b[2J"[..]),
        (4999, &[b'x'; 123]),
        (1011, b""),
    ] {
        let arena = Arena::new();
        let mut page = arena.attached(Kind::V1, false);
        page.frame(CLOSE, &[&code.to_be_bytes()[..], reason].concat());
        arena.server.wait_for_state("held");
        drop(page);
        drop(arena.resumed(Kind::V1));
        let told = arena.stopped();
        assert!(
            told.contains(&code.to_string()) && !told.contains('\u{1b}'),
            "{told:?}"
        );
    }
}

/// Defence: RFC 6455, section 8.1, kept by tokio-websockets.
#[test]
fn a_text_that_is_not_utf_8() {
    ends_the_link(
        1007,
        &[frame(TEXT, b"\xff\xfe"), frame(TEXT, b"\xed\xa0\x80")],
    );
}

/// Defence: crates/nbd-proxy/src/link/websocket/socket.rs, `PONGS`: who doesn't read the answers is not read from either.
#[test]
fn a_flood_of_pings_whose_answers_are_not_read() {
    let arena = Arena::with("\"hold\": 60, \"silence\": 2", 30);
    let mut page = arena.attached(Kind::V1, false);
    let before = arena.memory();
    page.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let pings = frame(PING, &[0; 125]).repeat(1000);
    // Two buffers of the kernel and ours: a few megabytes.
    let blocked = (0..2000).find_map(|_| page.stream.write_all(&pings).err());
    let kind = blocked.expect("everything is taken").kind();
    assert!(
        matches!(
            kind,
            ErrorKind::WouldBlock
                | ErrorKind::TimedOut
                | ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe
        ),
        "{kind}"
    );
    assert!(arena.memory() < before + (32 << 20));
    arena.server.wait_for_state("held");
    arena.survives();
}

/// Defence: the answers are counted, and cost no more than what was sent.
#[test]
fn a_flood_of_pings_and_pongs_beside_the_answers() {
    let arena = Arena::new();
    let mut page = arena.attached(Kind::V1, false);
    let reader = arena.reader();
    let asked = page.asked_for(&image(SIZE), PLACE);
    let noise = [frame(PING, &[0; 125]), frame(PONG, &[0; 125])].concat();
    for _ in 0..500 {
        assert!(page.send(&noise.repeat(20)));
        page.is_closed_within(Duration::from_millis(1));
    }
    page.answer(&image(SIZE), asked);
    page.serve_until(&image(SIZE), || reader.is_done());
    assert!(reader.bytes() == Ok(super::arena::expected()));
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/serve.rs, `expire`.
#[test]
fn an_answer_of_one_byte_at_a_time() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60", 1);
        let mut page = arena.attached(kind, false);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        for byte in simple(asked.cookie, 0, &image(SIZE)[..4096]) {
            page.nbd(&[byte]);
            if page.is_closed_within(Duration::from_millis(100)) {
                break;
            }
        }
        page.is_closed_with(4408, "not answered within 1 s");
        arena.resumed_by_an_honest_page(kind, reader);
        arena.survives();
    }
}

/// Defence: hyper's time for a head, and crates/nbd-proxy/src/link/websocket/keeper.rs, `keep`: a plain link's silence.
#[test]
fn a_frame_of_which_only_the_head_ever_comes() {
    let arena = Arena::with("\"hold\": 60, \"silence\": 1", 30);
    let mut page: Page = arena.attached(Kind::Plain, false);
    page.send(&frame_head(BINARY, 4 << 20));
    arena.server.wait_for_state("held");
    assert!(arena.memory() < 64 << 20);
    arena.survives();
}
