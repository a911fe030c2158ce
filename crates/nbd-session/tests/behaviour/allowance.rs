//! What a session may send, where it is told how much.

use nbd::Command;
use nbd::wire::TransmissionFlags;
use nbd_session::{Closing, LinkKind, SessionConfig};

use crate::bench::{Bench, Mood, WRITABLE, image};

const SIZE: usize = 1 << 20;
const LONG: u32 = 64 << 10;

/// A session that may send nothing long, whose peer keeps what it is asked.
fn bench(flags: TransmissionFlags) -> Bench {
    let mut bench = Bench::new(SessionConfig::default());
    bench.connect(LinkKind::V1, flags, image(SIZE));
    bench.peer().asked.clear();
    bench.peer().mood = Mood::Hangs;
    allow(&mut bench, Some(0));
    bench
}

fn allow(bench: &mut Bench, bytes: Option<u64>) {
    bench.volume.allow(bench.now, bytes);
    bench.run();
}

fn asked(bench: &mut Bench) -> Vec<u64> {
    bench.peer().asked.iter().map(Command::length).collect()
}

#[test]
fn small_reads_and_flushes_need_no_allowance() {
    let mut bench = bench(WRITABLE);
    bench.read(0, LONG);
    bench.read(1 << 19, 16 << 10);
    bench.read(0, 512);
    assert_eq!(asked(&mut bench), [16 << 10, 512]);
    assert!(
        bench
            .volume
            .needs_allowance()
            .is_some_and(|cost| cost > u64::from(LONG))
    );
    assert!(!bench.volume.uses_allowance());
    bench.answer_kept();
    allow(&mut bench, None);
    bench.submit(Command::Flush);
    assert_eq!(asked(&mut bench)[2..], [u64::from(LONG), 0]);
}

#[test]
fn an_allowance_is_for_so_many_bytes_and_the_last_request_is_sent_whole() {
    let mut bench = bench(TransmissionFlags::READ_ONLY);
    for at in 0..4 {
        bench.read(at * u64::from(LONG), LONG);
    }
    assert!(asked(&mut bench).is_empty());
    allow(&mut bench, Some(u64::from(LONG) * 3 / 2));
    assert_eq!(asked(&mut bench).len(), 2);
    assert!(bench.volume.needs_allowance().is_some());
    assert!(bench.volume.uses_allowance());
    assert_eq!(bench.volume.allowance(), Some(0));
    allow(&mut bench, None);
    assert_eq!(asked(&mut bench).len(), 4);
    assert_eq!(bench.volume.needs_allowance(), None);
    bench.answer_kept();
    assert!(!bench.volume.uses_allowance());
}

#[test]
fn writes_need_an_allowance_too() {
    let mut bench = bench(WRITABLE);
    let write = bench.write(0, 7, LONG as usize);
    assert!(asked(&mut bench).is_empty() && bench.volume.needs_allowance().is_some());
    allow(&mut bench, Some(1));
    bench.answer_kept();
    assert!(bench.answer(write).is_some_and(Result::is_ok));
}

#[test]
fn without_a_link_nothing_is_needed_and_the_next_link_keeps_to_what_was_allowed() {
    let mut bench = bench(TransmissionFlags::READ_ONLY);
    let read = bench.read(0, LONG);
    let link = bench.peer().link;
    let lost = Closing::Lost("asleep".into());
    bench.volume.handle_closed(bench.now, link, lost);
    assert_eq!(
        (
            bench.volume.needs_allowance(),
            bench.volume.uses_allowance()
        ),
        (None, false)
    );
    bench.connect(LinkKind::V1, TransmissionFlags::READ_ONLY, image(SIZE));
    assert!(bench.volume.needs_allowance().is_some());
    assert_eq!(bench.answer(read), None);
    allow(&mut bench, Some(1));
    assert_eq!(bench.bytes(read), image(SIZE)[..LONG as usize]);
}
