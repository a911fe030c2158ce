//! A page that abuses what a session promises to its links: to wait for them, and to go on with the same image.

use std::{io::Write as _, thread, time::Duration};

use super::{
    arena::{Arena, PLACE, SIZE, attach, expected, image, memory},
    page::{BINARY, Kind, Offer, Page, frame, simple},
};
use crate::{
    disk::Disk,
    harness::{Server, wait_for},
    page::{OTHER_ID, link},
};

/// The session is held; a link that offers this instead of its image gets 4410, and the machine goes on waiting for
/// the right one.
#[track_caller]
fn is_another_image(said: &str, offer: impl Fn(&mut Page)) {
    for kind in Kind::BOTH {
        let arena = Arena::new();
        drop(arena.attached(kind, false));
        arena.server.wait_for_state("held");
        let reader = arena.reader();
        let mut page = arena.page(kind);
        offer(&mut page);
        page.is_closed_with(4410, said);
        assert!(!reader.is_done());
        assert_eq!(arena.server.session()["state"], "held");
        arena.resumed_by_an_honest_page(kind, reader);
        arena.survives();
    }
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_announced`: the size can't change under a mounted
/// device.
#[test]
fn another_size_under_a_mounted_device() {
    for size in [512, SIZE as u64 - 512, SIZE as u64 + 512, 1 << 40] {
        is_another_image("size", |page| {
            page.announce(size);
            page.negotiate(&Offer {
                size,
                ..Offer::default()
            });
        });
    }
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_size`, where the announcement lies.
#[test]
fn another_size_than_was_announced_under_a_mounted_device() {
    let arena = Arena::new();
    drop(arena.attached(Kind::V1, false));
    arena.server.wait_for_state("held");
    let mut page = arena.page(Kind::V1);
    page.announce(SIZE as u64);
    page.negotiate(&Offer {
        size: 4 << 20,
        ..Offer::default()
    });
    page.is_closed_with(4400, "announced");
    drop(arena.resumed(Kind::V1));
    assert_eq!(
        Disk::connect(&arena.server.device()).export.size,
        SIZE as u64
    );
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/identity.rs, `check_abilities`.
#[test]
fn a_writable_image_in_place_of_one_that_is_read_only() {
    is_another_image("writable", |page| {
        page.announce(SIZE as u64);
        page.negotiate(&Offer {
            flags: 1,
            ..Offer::default()
        });
    });
}

/// Defence: crates/nbd-session/src/session/serve.rs, `check`: blocks that were seen are compared.
#[test]
fn other_bytes_in_place_of_the_image() {
    is_another_image("are not those of the session's image", |page| {
        page.announce(SIZE as u64);
        page.negotiate(&Offer::default());
        while let Ok(asked) = page.asked() {
            page.nbd(&simple(asked.cookie, 0, &vec![7; asked.length as usize]));
            if page.is_closed_within(Duration::from_millis(10)) {
                break;
            }
        }
    });
}

/// Defence: crates/nbd-session/src/session/serve.rs, `expire_one`: a second time, the machine gets an error.
#[test]
fn a_page_that_never_answers() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60", 1);
        let mut page = arena.attached(kind, false);
        let reader = arena.reader();
        page.asked_for(&image(SIZE), PLACE);
        page.is_closed_with(4408, "not answered within 1 s");
        let mut page = arena.resumed(kind);
        page.asked_for(&image(SIZE), PLACE);
        assert!(reader.bytes().unwrap_err().contains("input/output error"));
        arena.survives();
    }
}

/// Defence: twice. crates/nbd-proxy/src/attachment/worker.rs forgets a link that is closed with what it still had to say;
/// crates/nbd-session/src/session/mod.rs, `current`, does not listen to one of an older number, which its own tests show.
#[test]
fn an_answer_after_a_newer_link_took_over() {
    let arena = Arena::new();
    let mut old = arena.attached(Kind::V1, false);
    let reader = arena.reader();
    let asked = old.asked_for(&image(SIZE), PLACE);
    let mut new = arena.page(Kind::V1);
    new.announce(SIZE as u64);
    new.negotiate(&Offer::default());
    // It comes before the new link's own, and for the same cookies.
    for cookie in 0..=asked.cookie + 8 {
        old.nbd(&simple(cookie, 0, &vec![0xee; asked.length as usize]));
    }
    old.is_closed_with(4412, "superseded");
    new.serve_until(&image(SIZE), || reader.is_done());
    assert!(reader.bytes() == Ok(expected()), "wrong bytes");
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/challenge.rs: a link that lives serves on until another has shown its image.
#[test]
fn a_stranger_who_would_take_over_with_another_image() {
    let arena = Arena::new();
    let mut page = arena.attached(Kind::V1, false);
    let mut thief = Page::open(&arena.server, &format!("{}&takeover=1", link(OTHER_ID)));
    thief.announce_as("other.iso", SIZE as u64);
    thief.is_closed_with(4410, "name");
    let mut thief = Page::open(&arena.server, &format!("{}&takeover=1", link(OTHER_ID)));
    thief.announce(SIZE as u64);
    thief.negotiate(&Offer::default());
    let reader = arena.reader();
    let asked = thief.asked().expect("a block to compare");
    thief.nbd(&simple(asked.cookie, 0, &vec![7; asked.length as usize]));
    thief.is_closed_with(4410, "are not those");
    page.serve_until(&image(SIZE), || reader.is_done());
    assert!(reader.bytes() == Ok(expected()), "wrong bytes");
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/link.rs, `overdue`, and crates/nbd-proxy/src/link/websocket/keeper.rs, `keep`.
#[test]
fn a_connection_that_is_open_on_our_side_only() {
    for kind in Kind::BOTH {
        let arena = Arena::with("\"hold\": 60, \"silence\": 1", 30);
        let page = arena.attached(kind, false);
        let reader = arena.reader();
        // Nothing is read or sent any more, and nothing says so.
        arena.server.wait_for_state("held");
        arena.resumed_by_an_honest_page(kind, reader);
        drop(page);
        arena.survives();
    }
}

/// Defence: crates/nbd-session/src/session/mod.rs, `open_link`: one link at a time. Those before it are closed, and give
/// their places to others.
#[test]
fn a_storm_of_links_to_one_session() {
    let arena = Arena::new();
    drop(arena.attached(Kind::V1, false));
    let open = || {
        let mut page = arena.page(Kind::V1);
        page.announce(SIZE as u64);
        // It is the session's link once it is told of its state.
        while page.texts.is_empty() {
            assert!(!page.is_closed_within(Duration::from_millis(100)));
        }
        page
    };
    let mut last = open();
    // More than there are places for links.
    for _ in 0..300 {
        std::mem::replace(&mut last, open()).is_closed_with(4412, "superseded");
    }
    drop(last);
    arena.server.wait_for_state("held");
    let reader = arena.reader();
    arena.resumed_by_an_honest_page(Kind::V1, reader);
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/link/events.rs, `Sender::send`: a link that waits for its turn is not read from once it
/// is ahead by 256 KiB.
#[test]
fn a_flood_on_links_that_wait_for_their_turn() {
    let server = Server::start();
    server.write_hook("echo $1 >>calls\nif [ $1 = stop ]; then cat turn; fi");
    let turn = server.folder.path().join("turn");
    rustix::fs::mkfifoat(rustix::fs::CWD, &turn, rustix::fs::Mode::RWXU).unwrap();
    drop(attach(&server));
    // The next server has its `stop` to run, and whoever comes meanwhile waits.
    let server = server.restart();
    let before = memory(&server);
    let flood = frame(BINARY, &vec![7; 200_000]).repeat(10);
    let mut pages: Vec<Page> = (0..24).map(|_| Page::open(&server, "/nbd/0")).collect();
    thread::scope(|scope| {
        for page in &mut pages {
            let (stream, flood) = (&mut page.stream, &flood);
            let patience = Some(Duration::from_millis(500));
            stream.set_write_timeout(patience).unwrap();
            // More than the buffers of the kernel hold.
            scope.spawn(move || (0..50).find_map(|_| stream.write_all(flood).err()));
        }
    });
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
    std::fs::write(turn, "").unwrap();
    // Each is judged by what it has sent first, or finds the place taken by one that is.
    for mut page in pages {
        let (code, reason) = page.closed();
        assert!(matches!(code, 1002 | 4409), "{code} {reason}");
    }
    server.wait_until_free();
    drop(attach(&server));
}

/// Defence: `links` and `connections` of `limits`; tests/serve/limits.rs shows that they refuse, this that it harms nobody.
#[test]
fn more_links_at_once_than_there_are_places() {
    let arena = Arena::new();
    let mut page = arena.attached(Kind::V1, false);
    let server = &arena.server;
    // Each of them would wait for the slot of the configuration, or to be told that it is taken.
    let pages: Vec<Page> = thread::scope(|scope| {
        let opening: Vec<_> = (0..300)
            .map(|_| scope.spawn(|| Page::open(server, "/nbd/0")))
            .collect();
        opening
            .into_iter()
            .map(|page| page.join().unwrap())
            .collect()
    });
    for mut refused in pages {
        let (code, reason) = refused.closed();
        assert!(matches!(code, 4409 | 4429), "{code} {reason}");
    }
    let reader = arena.reader();
    page.serve_until(&image(SIZE), || reader.is_done());
    assert!(reader.bytes() == Ok(expected()), "wrong bytes");
    wait_for("places for others", || {
        (Page::open(server, "/nbd/0").closed().0 == 4409).then_some(())
    });
    arena.survives();
}
