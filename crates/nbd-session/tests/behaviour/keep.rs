//! A copy of the image, so that the one who serves it may go.

use std::time::Duration;

use nbd::Command;
use nbd::wire::TransmissionFlags;
use nbd_session::control::{PageMessage, ServerMessage};
use nbd_session::{Closing, EndReason, KeepState, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, Mood, image};

const SIZE: usize = 1_000_000;
const RO: TransmissionFlags = TransmissionFlags::READ_ONLY;

fn copying() -> Bench {
    let mut bench = Bench::serving(SessionConfig::default(), SIZE);
    bench.volume.begin_keep(bench.now);
    bench.run();
    bench.peer().asked.clear();
    bench
}

fn whole() -> Bench {
    let mut bench = copying();
    bench.pass(Duration::from_secs(5));
    assert!(bench.events.contains(&SessionEvent::Whole));
    bench.peer().asked.clear();
    bench
}

fn close(bench: &mut Bench, closing: Closing) {
    let link = bench.peer().link;
    bench.volume.handle_closed(bench.now, link, closing);
    bench.run();
}

fn state(bench: &Bench) -> KeepState {
    bench.volume.keep_state().unwrap().clone()
}

fn has_lost_its_copy(bench: &Bench) -> bool {
    let is_loss = |event: &SessionEvent| matches!(event, SessionEvent::KeepLost(_));
    bench.events.iter().any(is_loss)
}

#[test]
fn what_the_machine_did_not_read_is_copied_and_nothing_is_asked_twice() {
    let mut bench = copying();
    let read = bench.read(0, 400_000);
    assert_eq!(bench.bytes(read), image(SIZE)[..400_000]);
    bench.peer().asked.clear();
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.shelf.bytes, image(SIZE));
    // Blocks of 64 KiB, six of which the machine has read.
    let copied: u64 = bench.peer().asked.iter().map(Command::length).sum();
    assert_eq!(copied, 1_000_000 - 6 * 65_536);
    let told = bench.texts.iter().any(|text| match text {
        ServerMessage::State(state) => state.keep.as_ref().is_some_and(|keep| keep.whole),
        _ => false,
    });
    assert!(told);
    let keep = state(&bench);
    assert_eq!(
        (keep.bytes, keep.size, keep.whole),
        (1_000_000, 1_000_000, true)
    );
}

#[test]
fn while_the_machine_waits_nothing_is_copied() {
    let mut bench = copying();
    bench.peer().mood = Mood::HangsAt(512);
    bench.read(512, 512);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.peer().asked.len(), 1);
    bench.answer_kept();
    bench.pass(Duration::from_secs(10));
    assert!(bench.events.contains(&SessionEvent::Whole));
}

#[test]
fn what_is_copied_is_not_asked_of_the_link() {
    let mut bench = whole();
    let read = bench.read(123_456, 300_000);
    assert_eq!(bench.bytes(read), image(SIZE)[123_456..423_456]);
    assert_eq!(bench.peer().asked, []);
}

#[test]
fn with_a_whole_copy_no_link_is_needed() {
    for closing in [Closing::Clean, Closing::Lost("gone".into())] {
        let mut bench = whole();
        close(&mut bench, closing);
        bench.pass(Duration::from_secs(3600));
        let last = bench.events.last();
        assert!(matches!(last, Some(SessionEvent::Alone { .. })), "{last:?}");
        let read = bench.read(0, 1_000_000);
        assert_eq!(bench.bytes(read), image(SIZE));
        let status = bench.submit(Command::BlockStatus {
            offset: 0,
            length: 4096,
        });
        assert!(matches!(bench.answer(status), Some(Ok(_))));
    }
}

#[test]
fn a_held_session_reads_what_is_there() {
    let mut bench = copying();
    bench.read(0, 65_536);
    close(&mut bench, Closing::Lost("asleep".into()));
    let there = bench.read(100, 1000);
    let elsewhere = bench.read(500_000, 1000);
    assert_eq!(bench.bytes(there), image(SIZE)[100..1100]);
    assert_eq!(bench.answer(elsewhere), None);
}

#[test]
fn bye_ends_a_session_that_needs_no_link() {
    let mut bench = whole();
    let link = bench.peer().link;
    bench.say(link, &PageMessage::Bye.encode());
    let ending = SessionEvent::Ending(EndReason::Bye);
    assert_eq!(bench.events.last(), Some(&ending));
}

#[test]
fn what_the_machine_waits_for_when_the_copy_is_whole_is_answered_from_it() {
    let mut bench = copying();
    bench.read(0, 999_424);
    bench.peer().mood = Mood::HangsAt(983_000);
    let waiting = bench.read(983_000, 17_000);
    assert_eq!(bench.answer(waiting), None);
    let rest = bench.read(983_040, 16_960);
    assert_eq!(bench.bytes(rest), image(SIZE)[983_040..]);
    assert!(bench.events.contains(&SessionEvent::Whole));
    assert_eq!(bench.bytes(waiting), image(SIZE)[983_000..]);
}

#[test]
fn a_full_disk_is_no_loss() {
    let mut bench = copying();
    bench.read(0, 65_536);
    bench.shelf.is_broken = true;
    bench.pass(Duration::from_secs(5));
    assert!(has_lost_its_copy(&bench));
    let problem = state(&bench).problem.unwrap();
    assert!(problem.contains("no space left"), "{problem}");
    let read = bench.read(0, 1_000_000);
    assert_eq!(bench.bytes(read), image(SIZE));
}

#[test]
fn other_bytes_in_the_store_are_found_before_the_link_may_go() {
    let mut bench = copying();
    bench.read(0, 65_536);
    bench.shelf.bytes[5] ^= 1;
    bench.pass(Duration::from_secs(5));
    assert!(!bench.events.contains(&SessionEvent::Whole));
    assert!(has_lost_its_copy(&bench));
}

#[test]
fn a_session_that_loses_its_copy_needs_a_link_again() {
    let mut bench = whole();
    close(&mut bench, Closing::Clean);
    bench.shelf.is_broken = true;
    let waiting = bench.read(5000, 100);
    assert_eq!(bench.answer(waiting), None);
    let last = bench.events.last();
    assert!(matches!(last, Some(SessionEvent::Held { .. })), "{last:?}");
    bench.connect(LinkKind::V1, RO, image(SIZE));
    assert_eq!(bench.bytes(waiting), image(SIZE)[5000..5100]);
}

#[test]
fn a_writable_image_is_not_copied() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.volume.begin_keep(bench.now);
    assert!(state(&bench).problem.unwrap().contains("written"));
    bench.pass(Duration::from_secs(5));
    assert!(bench.shelf.bytes.is_empty());
}
