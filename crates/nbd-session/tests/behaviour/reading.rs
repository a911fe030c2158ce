//! What is read ahead, and what memory answers.

use std::time::Duration;

use nbd::wire::TransmissionFlags;
use nbd_session::{Closing, LinkKind, Session, SessionConfig, Volume};

use crate::bench::{Bench, Mood, image};

const KIB: u64 = 1 << 10;
const SIZE: usize = 8 << 20;
const RO: TransmissionFlags = TransmissionFlags::READ_ONLY;

fn config() -> SessionConfig {
    SessionConfig {
        max_request: 1 << 20,
        max_in_flight: 32 << 20,
        ..SessionConfig::default()
    }
}

/// A bench with `cache` bytes of memory, whose edges were looked at.
fn bench(cache: u64, flags: TransmissionFlags) -> Bench {
    let mut bench = Bench::new(config());
    bench.volume = Volume::new(Session::new(config())).with_cache(cache);
    bench.connect(LinkKind::V1, flags, image(SIZE));
    bench.peer().asked.clear();
    bench
}

/// Reads in a row; gives the last request.
fn read_on(bench: &mut Bench, from: u64, to: u64) -> u64 {
    let mut last = 0;
    for at in (from..to).step_by(128 << 10) {
        last = bench.read(at, 128 << 10);
    }
    last
}

#[test]
fn who_reads_in_a_row_finds_it_here() {
    let mut bench = bench(4 << 20, RO);
    read_on(&mut bench, 0, 2 << 20);
    bench.peer().mood = Mood::Hangs;
    let read = bench.read(2 << 20, 128 << 10);
    assert_eq!(
        bench.bytes(read),
        image(SIZE)[2 << 20..(2 << 20) + (128 << 10)]
    );
    bench.peer().mood = Mood::Answers;
    bench.answer_kept();
    read_on(&mut bench, (2 << 20) + (128 << 10), 8 << 20);
    let asked = &bench.peer().asked;
    assert!(asked.len() < 40, "{} requests for 64 reads", asked.len());
    let bytes: u64 = asked.iter().map(|command| command.length()).sum();
    assert_eq!(bytes, SIZE as u64, "everything once");
}

#[test]
fn a_scattered_read_asks_for_itself_alone_and_is_remembered() {
    let mut bench = bench(4 << 20, RO);
    for at in [5, 1, 7, 3] {
        bench.read(at << 20, 4096);
    }
    let lengths: Vec<_> = bench
        .peer()
        .asked
        .iter()
        .map(nbd::Command::length)
        .collect();
    assert_eq!(lengths, [4096; 4]);
    let again = bench.read((7 << 20) + 512, 512);
    assert_eq!(bench.bytes(again), image(SIZE)[(7 << 20) + 512..][..512]);
    assert_eq!(bench.peer().asked.len(), 4);
}

#[test]
fn small_reads_near_to_each_other_bring_their_surroundings() {
    let mut bench = bench(4 << 20, RO);
    bench.read(5 << 20, 4096);
    bench.read((5 << 20) + 20 * KIB, 4096);
    let asked = bench.peer().asked.len();
    for at in [8, 12, 40, 60] {
        let read = bench.read((5 << 20) + at * KIB, 4096);
        assert!(bench.answer(read).is_some());
    }
    assert_eq!(bench.peer().asked.len(), asked);
}

#[test]
fn memory_answers_while_the_session_is_held() {
    let mut bench = bench(4 << 20, RO);
    let link = bench.peer().link;
    read_on(&mut bench, 0, 1 << 20);
    let lost = Closing::Lost("reset".into());
    bench.volume.handle_closed(bench.now, link, lost);
    bench.run();
    let read = bench.read(64 * KIB, 4096);
    assert_eq!(bench.bytes(read), image(SIZE)[64 << 10..68 << 10]);
    let missing = bench.read(7 << 20, 4096);
    assert!(bench.answer(missing).is_none());
}

#[test]
fn what_nobody_waits_for_is_not_asked_of_the_next_link() {
    let mut bench = bench(4 << 20, RO);
    read_on(&mut bench, 0, 512 << 10);
    bench.peer().mood = Mood::Hangs;
    let waiting = read_on(&mut bench, 512 << 10, 2 << 20);
    assert!(bench.answer(waiting).is_none());
    let link = bench.peer().link;
    let before = bench.peer().asked.len();
    let lost = Closing::Lost("reset".into());
    bench.volume.handle_closed(bench.now, link, lost);
    bench.run();
    bench.mood = Mood::HangsAt(7 << 20);
    bench.connect(LinkKind::V1, RO, image(SIZE));
    assert!(bench.answer(waiting).is_some());
    let asked = &bench.peer().asked;
    assert!(asked.len() < before + 10, "{asked:?}");
}

#[test]
fn an_image_that_can_be_written_to_is_not_remembered() {
    let mut bench = bench(4 << 20, TransmissionFlags::SEND_FLUSH);
    for _ in 0..2 {
        bench.read(0, 4096);
    }
    assert_eq!(bench.peer().asked.len(), 2);
}

#[test]
fn without_memory_nothing_is_read_ahead() {
    let mut bench = bench(0, RO);
    read_on(&mut bench, 0, 1 << 20);
    assert_eq!(bench.peer().asked.len(), 8);
}

#[test]
fn an_answer_that_comes_slowly_is_no_loss_and_is_handed_out_as_it_comes() {
    let mut bench = bench(4 << 20, RO);
    bench.peer().mood = Mood::Hangs;
    let long = bench.read(0, 1 << 20);
    let short = bench.read(256 * KIB, 4096);
    let (link, answer) = bench.peer().take_answer();
    let mut handed_out = None;
    for (number, piece) in answer.chunks(answer.len() / 20).enumerate() {
        bench.pass(Duration::from_secs(10));
        bench.send(link, bytes::Bytes::copy_from_slice(piece));
        if handed_out.is_none() && bench.answer(short).is_some() {
            handed_out = Some(number);
        }
    }
    assert!(bench.closed.is_empty(), "{:?}", bench.closed);
    assert_eq!(bench.bytes(long), image(SIZE)[..1 << 20]);
    assert_eq!(bench.bytes(short), image(SIZE)[256 << 10..260 << 10]);
    assert!(
        handed_out.is_some_and(|number| number < 8),
        "{handed_out:?}"
    );
}
