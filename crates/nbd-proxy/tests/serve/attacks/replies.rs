//! A page that answers the machine's reads wrongly.

use super::{
    arena::{Arena, LENGTH, PLACE, SIZE, expected, image},
    page::{
        Asked, CHUNK_BLOCK_STATUS, CHUNK_DATA, CHUNK_ERROR, CHUNK_HOLE, CHUNK_NONE, DONE, Kind,
        Page, chunk, chunk_head, data_at, simple,
    },
};

const SIMPLE: bool = false;
const STRUCTURED: bool = true;

/// The machine reads, and the page does `attack` instead of answering. Its link ends with 1002 and a reason that says
/// `said`; the reader waits, and gets the image's bytes from an honest page.
#[track_caller]
fn is_a_violation(structured: bool, said: &str, attack: impl Fn(&mut Page, Asked)) {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, structured);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        attack(&mut page, asked);
        page.is_closed_with(1002, said);
        arena.server.wait_for_state("held");
        arena.resumed_by_an_honest_page(kind, reader);
        arena.survives();
    }
}

fn bytes(asked: Asked) -> Vec<u8> {
    let start = usize::try_from(asked.offset).unwrap();
    image(SIZE)[start..start + asked.length as usize].to_vec()
}

fn whole(asked: Asked) -> Vec<u8> {
    data_at(asked.offset, &bytes(asked))
}

/// Defence: crates/nbd/src/client/replies.rs, a reply's cookie must be that of a request.
#[test]
fn a_reply_to_a_request_that_was_never_made() {
    is_a_violation(SIMPLE, "not outstanding", |page, asked| {
        page.nbd(&simple(!asked.cookie, 0, &bytes(asked)));
    });
}

/// Defence: the same; a request that was answered is forgotten.
#[test]
fn a_reply_that_comes_twice() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, SIMPLE);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        let answer = simple(asked.cookie, 0, &bytes(asked));
        page.nbd(&[&answer[..], &answer].concat());
        page.is_closed_with(1002, "not outstanding");
        assert!(reader.bytes() == Ok(expected()), "wrong bytes");
        arena.survives();
    }
}

/// Defence: the same.
#[test]
fn a_reply_that_nobody_asked_for() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, SIMPLE);
        page.nbd(&simple(4711, 0, &[7; 4096]));
        page.is_closed_with(1002, "not outstanding");
        arena.server.wait_for_state("held");
        arena.survives();
    }
}

/// Defence: crates/nbd/src/client/replies.rs, what follows a reply has to begin with a reply's magic number.
#[test]
fn a_payload_that_is_too_long() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, SIMPLE);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        page.nbd(&[simple(asked.cookie, 0, &bytes(asked)), vec![7; 512]].concat());
        page.is_closed_with(1002, "magic number");
        assert!(reader.bytes() == Ok(expected()), "wrong bytes");
        arena.survives();
    }
}

/// Defence: crates/nbd-session/src/session/serve.rs, `expire`: what came short is no answer, and a request has a time.
#[test]
fn a_payload_that_is_too_short() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60", 1);
        let mut page = arena.attached(kind, SIMPLE);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        let bytes = bytes(asked);
        page.nbd(&simple(asked.cookie, 0, &bytes[..bytes.len() - 512]));
        page.is_closed_with(4408, "not answered within 1 s");
        arena.resumed_by_an_honest_page(kind, reader);
        arena.survives();
    }
}

/// Defence: crates/nbd/src/client/pending.rs, what a chunk covers lies in its request.
#[test]
fn a_chunk_out_of_range() {
    for place in [0, 1 << 62, u64::MAX] {
        is_a_violation(STRUCTURED, "outside of the request", |page, asked| {
            page.nbd(&chunk(
                asked.cookie,
                DONE,
                CHUNK_DATA,
                &data_at(place, &[7; 512]),
            ));
        });
    }
}

/// Defence: crates/nbd/src/client/coverage.rs, each byte comes once.
#[test]
fn chunks_that_overlap() {
    is_a_violation(STRUCTURED, "overlap", |page, asked| {
        let piece = data_at(asked.offset, &bytes(asked)[..1024]);
        page.nbd(&chunk(asked.cookie, 0, CHUNK_DATA, &piece));
        page.nbd(&chunk(asked.cookie, 0, CHUNK_DATA, &piece));
    });
}

/// Defence: crates/nbd/src/client/pending.rs, a read that ends has all of its bytes.
#[test]
fn a_chunk_that_is_missing() {
    is_a_violation(STRUCTURED, "bytes short", |page, asked| {
        let piece = data_at(asked.offset, &bytes(asked)[..1024]);
        page.nbd(&chunk(asked.cookie, DONE, CHUNK_DATA, &piece));
    });
}

/// Defence: the same.
#[test]
fn the_end_before_any_chunk() {
    is_a_violation(STRUCTURED, "bytes short", |page, asked| {
        page.nbd(&chunk(asked.cookie, DONE, CHUNK_NONE, b""));
    });
}

/// Defence: crates/nbd/src/client/replies.rs, what was answered to its end is forgotten.
#[test]
fn a_chunk_after_the_end() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, STRUCTURED);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        let chunk = chunk(asked.cookie, DONE, CHUNK_DATA, &whole(asked));
        page.nbd(&[&chunk[..], &chunk].concat());
        page.is_closed_with(1002, "not outstanding");
        assert!(reader.bytes() == Ok(expected()), "wrong bytes");
        arena.survives();
    }
}

/// Defence: crates/nbd/src/client/pending.rs, which chunks answer which command.
#[test]
fn a_chunk_of_an_unknown_or_a_wrong_type() {
    for kind in [3, 4711, CHUNK_BLOCK_STATUS] {
        is_a_violation(STRUCTURED, "in reply to", |page, asked| {
            page.nbd(&chunk(asked.cookie, 0, kind, &[0; 12]));
        });
    }
}

/// Defence: crates/nbd/src/client/pending.rs, lengths are judged by a chunk's header alone.
#[test]
fn a_chunk_that_promises_4_gib() {
    is_a_violation(STRUCTURED, "cannot be", |page, asked| {
        page.nbd(&chunk_head(asked.cookie, 0, CHUNK_DATA, u32::MAX));
    });
}

/// Defence: crates/nbd/src/client/pending.rs, a hole has a length and lies in its request.
#[test]
fn a_hole_of_no_length_or_out_of_range() {
    for (length, said) in [(0_u32, "length 0"), (u32::MAX, "outside of the request")] {
        is_a_violation(STRUCTURED, said, |page, asked| {
            let hole = data_at(asked.offset, &length.to_be_bytes());
            page.nbd(&chunk(asked.cookie, DONE, CHUNK_HOLE, &hole));
        });
    }
}

/// Defence: crates/nbd/src/client/pending.rs, `MAX_ERROR_LENGTH`.
#[test]
fn an_error_with_a_huge_message() {
    is_a_violation(STRUCTURED, "cannot be", |page, asked| {
        page.nbd(&chunk_head(asked.cookie, DONE, CHUNK_ERROR, 1 << 20));
    });
}

/// Defence: crates/nbd/src/client/pending.rs, `MAX_ERROR_CHUNKS`.
#[test]
fn errors_without_end() {
    is_a_violation(STRUCTURED, "error chunks", |page, asked| {
        let error = [&5_u32.to_be_bytes()[..], &[0, 2], b"no"].concat();
        let error = chunk(asked.cookie, 0, CHUNK_ERROR, &error);
        page.nbd(&error.repeat(2000));
    });
}

/// Defence: crates/nbd/src/client/coverage.rs, `MAX_RANGES`.
#[test]
fn a_read_torn_into_thousands_of_pieces() {
    is_a_violation(STRUCTURED, "gaps", |page, asked| {
        let bytes = bytes(asked);
        let pieces = (0..LENGTH as usize).step_by(2).flat_map(|at| {
            let place = asked.offset + at as u64;
            chunk(
                asked.cookie,
                0,
                CHUNK_DATA,
                &data_at(place, &bytes[at..=at]),
            )
        });
        page.nbd(&pieces.collect::<Vec<_>>());
    });
}

/// Defence: crates/nbd/src/client/replies.rs, structured replies have to be agreed on.
#[test]
fn a_structured_reply_that_was_not_agreed_on() {
    is_a_violation(SIMPLE, "not negotiated", |page, asked| {
        page.nbd(&chunk(asked.cookie, DONE, CHUNK_DATA, &whole(asked)));
    });
}

/// Defence: crates/nbd/src/client/replies.rs, a read is answered by chunks where these were agreed on.
#[test]
fn a_simple_reply_where_a_structured_one_was_agreed_on() {
    is_a_violation(STRUCTURED, "structured", |page, asked| {
        page.nbd(&simple(asked.cookie, 0, &bytes(asked)));
    });
}

/// Defence: crates/nbd/src/wire/codes.rs, `Errno::from`: an error of the page is never success for the machine, and
/// none that it could not have.
#[test]
fn an_error_number_that_does_not_exist() {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        let mut page = arena.attached(kind, SIMPLE);
        let reader = arena.reader();
        let asked = page.asked_for(&image(SIZE), PLACE);
        page.nbd(&simple(asked.cookie, 0x8000_0000, b""));
        assert!(reader.bytes().unwrap_err().contains("invalid argument"));
        assert_eq!(arena.server.session()["state"], "attached");
        arena.survives();
    }
}
