//! A page that abuses the text messages of a `v=1` link.

use std::fs;

use super::{
    arena::{Arena, PLACE, SIZE, expected, image},
    client::{Client, Door, OPT_INFO},
    page::{Kind, Offer, Page},
};

/// Names that could mislead people.
const DECEIVING: &str = "\u{1b}[2J\u{1b}]0;root\u{7}\ncod\u{202e}osi.exe\u{2069}\u{200b}\u{2028}";

fn deceives(text: &str) -> bool {
    text.contains([
        '\u{1b}', '\u{7}', '\u{202e}', '\u{2069}', '\u{200b}', '\u{2028}',
    ])
}

/// The page says this on a link that serves: the link ends with 1002 and a reason that says `said`.
#[track_caller]
fn is_a_violation(said: &str, attack: impl Fn(&mut Page)) {
    let arena = Arena::new();
    let mut page = arena.attached(Kind::V1, false);
    let reader = arena.reader();
    page.asked_for(&image(SIZE), PLACE);
    attack(&mut page);
    page.is_closed_with(1002, said);
    arena.server.wait_for_state("held");
    arena.resumed_by_an_honest_page(Kind::V1, reader);
    arena.survives();
}

/// Defence: crates/nbd-session/src/session/link.rs, `count_text`.
#[test]
fn a_flood_of_texts() {
    is_a_violation("more than 100 text messages", |page| {
        page.flood(&super::page::frame(super::page::TEXT, br#"{"type":"weather"}"#).repeat(100));
    });
}

/// Defence: crates/nbd-session/src/control.rs, `MAX_TEXT_LENGTH`.
#[test]
fn a_text_of_a_megabyte() {
    is_a_violation("more than 65536", |page| {
        let padding = "x".repeat(1 << 20);
        page.text(&format!(r#"{{"type":"weather","of":"{padding}"}}"#));
    });
}

/// Defence: serde_json's limit of depth.
#[test]
fn json_of_a_great_depth() {
    for open in ["[", "{\"a\":"] {
        is_a_violation("cannot be understood", |page| {
            let depth = open.repeat(60_000 / open.len());
            page.text(&format!(r#"{{"type":"weather","of":{depth}"#));
        });
    }
}

/// Defence: crates/nbd-session/src/control.rs, `PageMessage::parse`.
#[test]
fn texts_that_are_no_messages() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "\u{feff}{}",
        r#"{"type":1}"#,
        r#"{"type":"image"}"#,
        r#"{"type":"image","name":"x","size":-1}"#,
        r#"{"type":"image","name":"x","size":1e300}"#,
        r#"{"type":"image","name":"x","size":18446744073709551616}"#,
        r#"{"type":"image","name":["x"],"size":1}"#,
        r#"{"type":"bye"}{"type":"bye"}"#,
    ] {
        is_a_violation("", |page| {
            page.text(text);
        });
    }
}

/// Defence: crates/nbd-session/src/session/mod.rs, `receive_text`: a link has one image.
#[test]
fn a_second_image_of_another_size_on_a_link_that_serves() {
    is_a_violation("second `image`", |page| page.announce(4 << 20));
}

/// Defence: crates/nbd-session/src/control.rs, `MAX_NAME_LENGTH`.
#[test]
fn a_name_of_more_than_4096_bytes() {
    let arena = Arena::new();
    let mut page = arena.page(Kind::V1);
    page.announce_as(&"é".repeat(2049), SIZE as u64);
    page.is_closed_with(1002, "4098 bytes");
    arena.server.wait_until_free();
    arena.survives();
}

/// Defence: crates/nbd/src/text.rs, `printable`: for the API, the page, the hook, the refusal of others, and the log.
#[test]
fn a_name_that_draws_on_terminals_and_turns_text_around() {
    let arena = Arena::new();
    arena.server.write_hook("env > environment");
    let mut page = arena.page(Kind::V1);
    page.announce_as(DECEIVING, SIZE as u64);
    page.negotiate(&Offer::default());
    page.serve_until(&image(SIZE), || {
        arena.server.session()["state"] == "attached"
    });
    let api = arena.server.get("/api/v1/configurations");
    assert!(api.text().contains("osi.exe") && !deceives(api.text()));
    let name = arena.server.session()["image"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!name.contains('\n') && !deceives(&name), "{name:?}");
    let status = arena.server.run(&["status"]);
    assert!(status.stdout.contains("osi.exe") && !deceives(&status.stdout));
    let environment = fs::read_to_string(arena.server.folder.path().join("environment")).unwrap();
    assert!(environment.contains("osi.exe") && !deceives(&environment));
    let (code, reason) = Page::open(&arena.server, "/nbd/0").closed();
    assert!(code == 4409 && !deceives(&reason), "{reason}");
    page.nbd(b"nonsense");
    drop(page);
    assert!(!deceives(&arena.stopped()));
}

/// Defence: crates/nbd/src/text.rs, `display_text`, for names that come by NBD.
#[test]
fn an_export_description_that_draws_on_terminals_and_is_not_utf_8() {
    let arena = Arena::new();
    let mut page = arena.page(Kind::Plain);
    let description = [&[0, 2][..], b"\xff\xfe", DECEIVING.as_bytes()].concat();
    page.negotiate(&Offer {
        more: vec![description],
        ..Offer::default()
    });
    page.serve_until(&image(SIZE), || {
        arena.server.session()["state"] == "attached"
    });
    assert!(!deceives(arena.server.get("/api/v1/configurations").text()));
    // A client of the device is told the description, and may show it.
    let mut client = Client::haggling(&Door::Unix(arena.server.device()));
    let told = client.ask_for(OPT_INFO, &[0, 0, 0, 0, 0, 1, 0, 2]);
    let described = told.iter().find_map(|data| data.strip_prefix(&[0, 2]));
    let told = String::from_utf8_lossy(described.unwrap());
    assert!(told.contains("osi.exe") && !deceives(&told), "{told:?}");
    let reader = arena.reader();
    page.serve_until(&image(SIZE), || reader.is_done());
    assert!(reader.bytes() == Ok(expected()));
    drop(page);
    assert!(!deceives(&arena.stopped()));
}

/// Defence: crates/nbd/src/client/info.rs, lengths and encodings of names and descriptions.
#[test]
fn an_export_name_of_more_than_4096_bytes_or_not_utf_8() {
    for information in [
        [&[0, 1][..], &[b'x'; 4097]].concat(),
        [&[0, 1][..], b"\xff\xfe"].concat(),
        [&[0, 2][..], &[b'x'; 4097]].concat(),
    ] {
        let arena = Arena::new();
        let mut page = arena.page(Kind::Plain);
        page.negotiate(&Offer {
            more: vec![information],
            ..Offer::default()
        });
        let (code, reason) = page.closed();
        assert_eq!(code, 1002, "{reason}");
        arena.server.wait_until_free();
        arena.survives();
    }
}
