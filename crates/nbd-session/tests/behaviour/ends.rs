//! What ends a session, and what happens to requests then.

use std::time::Duration;

use nbd::wire::{Errno, TransmissionFlags};
use nbd_session::control::{PageMessage, ServerMessage};
use nbd_session::{Closing, EndReason, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, Mood, image};

fn hanging(hold: u64) -> (Bench, u64) {
    let config = SessionConfig {
        hold: Duration::from_secs(hold),
        ..SessionConfig::default()
    };
    let mut bench = Bench::serving(config, 100_000);
    bench.peer().mood = Mood::Hangs;
    let request = bench.read(0, 512);
    (bench, request)
}

fn lose(bench: &mut Bench, closing: Closing) {
    let link = bench.peer().link;
    bench.volume.handle_closed(bench.now, link, closing);
    bench.run();
}

fn lost() -> Closing {
    Closing::Lost("reset by peer".into())
}

fn ended(bench: &Bench) -> &EndReason {
    let ends = bench.events.iter().filter_map(|event| match event {
        SessionEvent::Ended(reason) => Some(reason),
        _ => None,
    });
    let ends: Vec<_> = ends.collect();
    assert_eq!(ends.len(), 1, "{:?}", bench.events);
    ends[0]
}

#[test]
fn a_lost_link_holds_requests_until_the_hold_expires() {
    let (mut bench, request) = hanging(300);
    lose(&mut bench, lost());
    bench.pass(Duration::from_millis(299_999));
    assert_eq!(bench.answer(request), None);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    assert_eq!(ended(&bench), &EndReason::HoldExpired);
}

#[test]
fn without_hold_a_lost_link_fails_requests_at_once() {
    let (mut bench, request) = hanging(0);
    lose(&mut bench, lost());
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    assert_eq!(ended(&bench), &EndReason::LinkLost("reset by peer".into()));
}

#[test]
fn a_clean_close_ends_the_session() {
    let (mut bench, request) = hanging(300);
    lose(&mut bench, Closing::Clean);
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    assert_eq!(ended(&bench), &EndReason::Closed);
}

#[test]
fn after_the_end_requests_fail_at_once_and_links_are_closed() {
    let (mut bench, _) = hanging(300);
    lose(&mut bench, Closing::Clean);
    let request = bench.read(0, 512);
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    bench.volume.open_link(bench.now, LinkKind::Plain);
    bench.run();
    assert_eq!(bench.closed, [(1001, "the session has ended".into())]);
    assert_eq!(bench.volume.poll_timeout(), None);
}

#[test]
fn after_bye_requests_are_served_until_the_end_is_called() {
    let mut bench = Bench::serving(SessionConfig::default(), 100_000);
    let link = bench.peer().link;
    bench.say(link, &PageMessage::Bye.encode());
    assert_eq!(
        bench.events.last(),
        Some(&SessionEvent::Ending(EndReason::Bye))
    );
    let request = bench.read(512, 512);
    assert_eq!(bench.bytes(request), image(1024)[512..]);
    bench.volume.end(bench.now, EndReason::Bye);
    bench.run();
    assert_eq!(ended(&bench), &EndReason::Bye);
    assert_eq!(bench.closed[0].0, 1000);
    assert!(bench.peer().disconnected);
    let Some(ServerMessage::End { reason, message }) = bench.texts.last() else {
        panic!("{:?}", bench.texts)
    };
    assert_eq!(
        (reason.as_str(), message),
        ("bye", &EndReason::Bye.to_string())
    );
}

#[test]
fn while_the_stop_hook_runs_a_lost_link_is_not_held() {
    let (mut bench, request) = hanging(300);
    bench.volume.drain(bench.now, EndReason::Ejected);
    bench.run();
    assert_eq!(bench.answer(request), None);
    lose(&mut bench, lost());
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    assert_eq!(ended(&bench), &EndReason::Ejected);
}

#[test]
fn a_stop_hook_without_a_link_gets_errors_at_once() {
    let (mut bench, request) = hanging(300);
    lose(&mut bench, lost());
    bench.volume.drain(bench.now, EndReason::Shutdown);
    bench.run();
    assert_eq!(bench.answer(request), Some(&Err(Errno::EIO)));
    let late = bench.read(0, 512);
    assert_eq!(bench.answer(late), Some(&Err(Errno::EIO)));
}

#[test]
fn a_first_link_that_is_lost_before_the_handshake_ends_the_session() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.open(
        LinkKind::Plain,
        crate::bench::export(512, TransmissionFlags::READ_ONLY),
        image(512),
    );
    lose(&mut bench, lost());
    assert_eq!(ended(&bench), &EndReason::LinkLost("reset by peer".into()));
}

#[test]
fn a_link_that_has_not_shown_the_image_cannot_end_the_session() {
    let (mut bench, _) = hanging(300);
    lose(&mut bench, lost());
    for closing in [Closing::Clean, lost()] {
        bench.open(
            LinkKind::Plain,
            crate::bench::export(512, TransmissionFlags::READ_ONLY),
            image(512),
        );
        lose(&mut bench, closing);
    }
    let link = bench.volume.open_link(bench.now, LinkKind::V1);
    bench.say(link, &PageMessage::Bye.encode());
    assert!(!bench.volume.is_ended());
    assert_eq!(bench.closed.last().map(|(code, _)| *code), Some(1000));
}

#[test]
fn a_late_request_costs_the_link_once_and_then_fails() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.mood = Mood::HangsAt(4096);
    let connect = |bench: &mut Bench| {
        bench.connect(
            LinkKind::Plain,
            TransmissionFlags::READ_ONLY,
            image(100_000),
        )
    };
    connect(&mut bench);
    let late = bench.read(4096, 512);
    bench.pass(Duration::from_secs(30));
    assert_eq!(
        bench.closed,
        [(4408, "a request was not answered within 30 s".into())]
    );
    connect(&mut bench);
    bench.pass(Duration::from_millis(29_999));
    assert_eq!(bench.answer(late), None);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.answer(late), Some(&Err(Errno::EIO)));
    // The link goes on, and an answer that comes after all is nobody's.
    bench.answer_kept();
    let other = bench.read(512, 512);
    assert_eq!(bench.bytes(other), image(1024)[512..]);
    assert_eq!(bench.closed.len(), 1);
}

#[test]
fn a_link_that_leaves_too_much_unanswered_is_lost_again() {
    let mut bench = Bench::new(SessionConfig::default());
    let read_only = TransmissionFlags::READ_ONLY;
    bench.mood = Mood::HangsAt(4096);
    bench.connect(LinkKind::Plain, read_only, image(100_000));
    for _ in 0..16 {
        bench.read(4096, 512);
    }
    bench.pass(Duration::from_secs(30));
    bench.connect(LinkKind::Plain, read_only, image(100_000));
    bench.pass(Duration::from_secs(30));
    assert!(
        bench
            .completed
            .iter()
            .all(|(_, result)| *result == Err(Errno::EIO))
    );
    assert_eq!((bench.completed.len(), bench.closed.len()), (16, 2));
}
