//! A link that takes over from one that lives, or fails to.

use std::time::Duration;

use nbd::wire::TransmissionFlags;
use nbd_session::control::ServerMessage;
use nbd_session::{Closing, EndReason, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, Mood, announcement, export, image};

const KINDS: [LinkKind; 2] = [LinkKind::V1, LinkKind::Plain];

/// A bench with a link that serves, and hangs with a read outstanding.
fn busy() -> (Bench, u64) {
    let mut bench = Bench::serving(SessionConfig::default(), 1_000_000);
    bench.read(300_000, 4096);
    bench.peer().mood = Mood::Hangs;
    let waiting = bench.read(5000, 100);
    assert_eq!(bench.answer(waiting), None);
    (bench, waiting)
}

#[test]
fn the_same_image_takes_over_without_a_pause() {
    for kind in KINDS {
        let (mut bench, waiting) = busy();
        let link = bench.challenge(kind, image(1_000_000));
        assert_eq!(bench.events.last(), Some(&SessionEvent::TakenOver { link }));
        let held = |event: &SessionEvent| matches!(event, SessionEvent::Held { .. });
        assert!(!bench.events.iter().any(held));
        assert_eq!(bench.closed.len(), 1);
        assert_eq!(bench.closed[0].0, 4412);
        assert_eq!(bench.bytes(waiting), image(6000)[5000..5100]);
    }
}

#[test]
fn another_image_is_refused_and_the_link_that_serves_is_unharmed() {
    let mut modified = image(1_000_000);
    modified[300_000] ^= 1;
    for kind in KINDS {
        for other in [image(999_999), modified.clone()] {
            let mut bench = Bench::serving(SessionConfig::default(), 1_000_000);
            bench.read(300_000, 4096);
            bench.challenge(kind, other);
            assert_eq!(bench.closed.len(), 1);
            assert_eq!(bench.closed[0].0, 4410);
            let read = bench.read(5000, 100);
            assert_eq!(bench.bytes(read), image(6000)[5000..5100]);
            assert_eq!(bench.events.len(), 1, "{:?}", bench.events);
        }
    }
}

#[test]
fn a_challenger_that_is_silent_or_hangs_is_given_up() {
    let (mut bench, _) = busy();
    let first = bench.peer().link;
    bench.mood = Mood::Hangs;
    bench.challenge(LinkKind::V1, image(1_000_000));
    for _ in 0..3 {
        bench.pass(Duration::from_secs(5));
        bench.volume.handle_alive(bench.now, first);
    }
    assert_eq!(bench.closed.len(), 1);
    assert_eq!(bench.closed[0].0, 4408);
    let beats = |text: &&ServerMessage| matches!(text, ServerMessage::Beat);
    assert!(
        bench.texts.iter().filter(beats).count() >= 4,
        "both links have a beat"
    );
    assert!(!bench.volume.is_ended());
}

#[test]
fn what_a_challenger_says_ends_itself_alone() {
    for text in ["{", r#"{"type":"bye"}"#, &announcement(1_000_000).encode()] {
        let (mut bench, _) = busy();
        let size = 1_000_000;
        let link = bench.volume.challenge(bench.now, LinkKind::V1);
        bench.attend(
            link,
            export(size, TransmissionFlags::READ_ONLY),
            image(1_000_000),
        );
        bench.say(link, &announcement(size).encode());
        bench.say(link, text);
        assert_eq!(bench.closed.len(), 1);
        assert_eq!(bench.events.len(), 1, "{:?}", bench.events);
    }
}

#[test]
fn a_challenger_resumes_the_session_when_the_link_is_lost_meanwhile() {
    let (mut bench, waiting) = busy();
    let first = bench.peer().link;
    let link = bench.volume.challenge(bench.now, LinkKind::V1);
    let size = 1_000_000;
    bench.attend(
        link,
        export(size, TransmissionFlags::READ_ONLY),
        image(1_000_000),
    );
    bench
        .volume
        .handle_closed(bench.now, first, Closing::Lost("asleep".into()));
    bench.run();
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Held { .. })
    ));
    bench.say(link, &announcement(size).encode());
    bench.greet();
    assert_eq!(bench.events.last(), Some(&SessionEvent::Resumed { link }));
    assert_eq!(bench.bytes(waiting), image(6000)[5000..5100]);
}

#[test]
fn a_newer_challenger_supersedes_the_older_and_the_end_takes_both() {
    let (mut bench, _) = busy();
    let open = |bench: &mut Bench| {
        let link = bench.volume.challenge(bench.now, LinkKind::V1);
        bench.attend(
            link,
            export(1_000_000, TransmissionFlags::READ_ONLY),
            Vec::new(),
        );
    };
    open(&mut bench);
    open(&mut bench);
    assert_eq!(bench.closed.pop().map(|(code, _)| code), Some(4412));
    bench.volume.end(bench.now, EndReason::Ejected);
    bench.run();
    let codes: Vec<_> = bench.closed.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [1000, 1001]);
}

#[test]
fn a_writable_image_is_not_taken_over() {
    let mut bench = Bench::writable(SessionConfig::default());
    let link = bench.volume.challenge(bench.now, LinkKind::V1);
    bench.attend(
        link,
        export(65_536, TransmissionFlags::READ_ONLY),
        Vec::new(),
    );
    assert_eq!(bench.closed.pop().map(|(code, _)| code), Some(4409));
    let write = bench.write(0, 1, 512);
    assert!(bench.answer(write).is_some());
}
