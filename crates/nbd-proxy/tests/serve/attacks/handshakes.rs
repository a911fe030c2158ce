//! A page that lies before its image is attached.

use std::time::Duration;

use serde_json::Value;

use super::{
    arena::{Arena, SIZE},
    page::{
        Kind, OPT_EXPORT_NAME, OPT_GO, OPT_STRUCTURED_REPLY, Offer, Page, REP_ACK, REP_INFO,
        REP_SERVER, block_sizes, export_information, reply, reply_head,
    },
};

/// The page does `attack` on a fresh link, which ends with `code` and a reason that says `said`. There never is a
/// session or a device.
#[track_caller]
fn is_refused(code: u16, said: &str, attack: impl Fn(&mut Page)) {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.page(kind);
        attack(&mut page);
        page.is_closed_with(code, said);
        arena.server.wait_until_free();
        assert!(!arena.server.device().exists());
        arena.survives();
    }
}

/// The image has this size.
fn of_size(size: u64) -> impl Fn(&mut Page) {
    move |page| {
        page.announce(size);
        page.negotiate(&Offer {
            size,
            ..Offer::default()
        });
    }
}

/// The page answers `NBD_OPT_GO` with this.
fn saying(answer: Vec<u8>) -> impl Fn(&mut Page) {
    move |page| {
        page.announce(SIZE as u64);
        page.haggle_until(OPT_GO);
        page.nbd(&answer);
    }
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_size`.
#[test]
fn an_image_of_no_bytes() {
    is_refused(4400, "empty", of_size(0));
}

/// Defence: crates/nbd/src/client/info.rs, `MAX_EXPORT_SIZE`.
#[test]
fn an_image_of_2_to_the_64_bytes() {
    is_refused(1002, "2^63 - 1", of_size(u64::MAX));
    is_refused(1002, "2^63 - 1", of_size(1 << 63));
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_size`: rounded up to sectors it would not fit.
#[test]
fn an_image_that_does_not_fit_in_sectors() {
    is_refused(4400, "more than a device can have", of_size((1 << 63) - 1));
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_size`.
#[test]
fn an_image_of_another_size_than_was_announced() {
    let arena = Arena::new();
    let mut page = arena.page(Kind::V1);
    page.announce(512);
    page.negotiate(&Offer::default());
    page.is_closed_with(4400, "512 bytes were announced");
    arena.server.wait_until_free();
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/serve.rs, `shake_hands`.
#[test]
fn an_image_that_was_not_announced() {
    let arena = Arena::new();
    let mut page = arena.page(Kind::V1);
    page.nbd(b"NBDMAGICIHAVEOPT\x00\x03");
    page.is_closed_with(1002, "before the `image` message");
    arena.server.wait_until_free();
    arena.survives();
}

/// Defence: crates/nbd/src/export.rs, `BlockSizes::validate`.
#[test]
fn block_sizes_that_cannot_be() {
    for sizes in [
        block_sizes(3, 4096, 1 << 25),
        block_sizes(0, 4096, 1 << 25),
        block_sizes(4096, 512, 1 << 25),
        block_sizes(1 << 31, 1 << 31, 1 << 31),
        block_sizes(1, 4096, 0),
    ] {
        is_refused(1002, "block size", |page| {
            page.announce(SIZE as u64);
            let more = vec![sizes.clone()];
            page.negotiate(&Offer {
                more,
                ..Offer::default()
            });
        });
    }
}

/// Defence: crates/nbd/src/client/info.rs, the flag that proto.md demands.
#[test]
fn transmission_flags_that_are_none() {
    is_refused(1002, "NBD_FLAG_HAS_FLAGS", |page| {
        page.announce(SIZE as u64);
        page.negotiate(&Offer {
            flags: 2,
            ..Offer::default()
        });
    });
}

/// Defence: crates/nbd/src/client/handshake.rs, `MAX_REPLY_LENGTH`, judged by the header alone.
#[test]
fn a_reply_to_an_option_that_promises_4_gib() {
    is_refused(
        1002,
        "bytes long",
        saying(reply_head(OPT_GO, REP_INFO, u32::MAX)),
    );
}

/// Defence: crates/nbd/src/client/handshake.rs, `MAX_REPLIES`.
#[test]
fn replies_to_an_option_without_end() {
    let information = reply(OPT_GO, REP_INFO, &[0x47, 0x11]);
    is_refused(1002, "more than", saying(information.repeat(2000)));
}

/// Defence: crates/nbd/src/client/handshake.rs: entries of a list are no reply to what we ask.
#[test]
fn entries_of_a_list_without_end() {
    let entry = reply(OPT_GO, REP_SERVER, b"\0\0\0\x01x");
    is_refused(1002, "is no reply to", saying(entry.repeat(2000)));
}

/// Defence: crates/nbd/src/client/handshake.rs, an answer names what it answers.
#[test]
fn a_reply_to_another_option() {
    let other = reply(OPT_STRUCTURED_REPLY, REP_ACK, b"");
    is_refused(1002, "when it was asked", saying(other));
}

/// Defence: crates/nbd/src/client/handshake.rs, transmission needs NBD_INFO_EXPORT.
#[test]
fn an_export_that_is_none() {
    is_refused(
        1002,
        "without NBD_INFO_EXPORT",
        saying(reply(OPT_GO, REP_ACK, b"")),
    );
}

/// Defence: crates/nbd/src/client/info.rs, lengths of information.
#[test]
fn information_of_a_wrong_length() {
    let export = export_information(SIZE as u64, 3);
    is_refused(
        1002,
        "bytes long",
        saying(reply(OPT_GO, REP_INFO, &export[..7])),
    );
    is_refused(1002, "bytes long", saying(reply(OPT_GO, REP_INFO, &[0])));
}

/// Defence: crates/nbd/src/client/handshake.rs, the magic numbers.
#[test]
fn a_greeting_of_another_protocol() {
    for greeting in [
        &b"SSH-2.0-OpenSSH_10.0\r\n"[..],
        b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53",
        &[0; 64],
    ] {
        is_refused(1002, "", |page| {
            page.announce(SIZE as u64);
            page.nbd(greeting);
        });
    }
}

/// Defence: crates/nbd/src/client/handshake.rs, what follows NBD_OPT_EXPORT_NAME is checked as well.
#[test]
fn a_lie_in_the_old_form_of_the_handshake() {
    is_refused(1002, "2^63 - 1", |page| {
        page.announce(SIZE as u64);
        page.haggle_until(OPT_EXPORT_NAME);
        page.nbd(&[0xff; 8 + 2 + 124]);
    });
}

/// Defence: crates/nbd/src/text.rs, `display_text`, and `shortened` of the close frame.
#[test]
fn a_refusal_that_draws_on_the_terminal() {
    const ERR_POLICY: u32 = (1 << 31) + 2;
    let message = "\u{1b}[2J\u{202e}\n".repeat(1000);
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.page(kind);
        saying(reply(OPT_GO, ERR_POLICY, message.as_bytes()))(&mut page);
        let (code, reason) = page.closed();
        assert_eq!(code, 1002, "{reason}");
        assert!(!reason.contains(['\u{1b}', '\u{202e}', '\n']), "{reason:?}");
        arena.server.wait_until_free();
        assert_eq!(arena.server.session(), Value::Null);
        let told = arena.stopped();
        assert!(!told.contains(['\u{1b}', '\u{202e}']), "{told:?}");
    }
}

/// Defence: crates/nbd-session/src/session/link.rs, `overdue`: a handshake has a time.
#[test]
fn a_handshake_of_one_byte_at_a_time() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60", 1);
        let mut page = arena.page(kind);
        page.announce(SIZE as u64);
        for byte in b"NBDMAGICIHAVEOPT\x00\x03" {
            page.nbd(&[*byte]);
            if page.is_closed_within(Duration::from_millis(100)) {
                break;
            }
        }
        page.is_closed_with(4408, "no NBD handshake within 1 s");
        arena.server.wait_until_free();
        arena.survives();
    }
}
