//! How often a read allocates memory on its way through volume and session, once the cache is full.

use allocation_counter::measure;
use nbd::Command;
use nbd::wire::{CommandFlags, TransmissionFlags};
use nbd_session::{LinkKind, Output, RequestId, Session, SessionConfig, Volume};

use crate::bench::{Bench, image};

const SIZE: u32 = 8 << 20;
const CACHE: u64 = 1 << 20;

fn bench() -> Bench {
    let mut bench = Bench::new(SessionConfig::default());
    bench.volume = Volume::new(Session::new(SessionConfig::default())).with_cache(CACHE);
    bench.connect(
        LinkKind::V1,
        TransmissionFlags::READ_ONLY,
        image(SIZE as usize),
    );
    bench
}

/// How often a read allocates in volume and session, from its request to its answer.
fn allocations(bench: &mut Bench, id: u64, offset: u32, length: u32) -> u64 {
    let (now, command) = (
        bench.now,
        Command::Read {
            offset: offset.into(),
            length,
        },
    );
    let (mut sent, mut answered) = (Vec::with_capacity(64), false);
    let mut count = measure(|| {
        bench
            .volume
            .submit(now, RequestId(id), CommandFlags::empty(), command);
        collect(&mut bench.volume, &mut sent, &mut answered);
    })
    .count_total;
    while let Some(request) = sent.pop() {
        let (link, replies) = (bench.peer().link, bench.peer().receive(request));
        count += measure(|| {
            for reply in replies {
                bench.volume.handle_data(now, link, reply);
                collect(&mut bench.volume, &mut sent, &mut answered);
            }
        })
        .count_total;
    }
    assert!(answered, "no answer to {offset}+{length}");
    bench.peer().asked.clear();
    count
}

fn collect(volume: &mut Volume, sent: &mut Vec<bytes::Bytes>, answered: &mut bool) {
    while let Some(output) = volume.poll_output() {
        match output {
            Output::Send { data, .. } => sent.push(data),
            Output::Complete { result, .. } => *answered = result.is_ok(),
            _ => {}
        }
    }
}

/// Allocations per read, over the first half of `offsets` and over the second, when the cache has long been full.
fn before_and_after(length: u32, offsets: impl Fn(u32) -> u32) -> [f64; 2] {
    const READS: u32 = 2000;
    let mut bench = bench();
    let mut number = 0;
    let mut round = || {
        let total: u64 = (0..READS)
            .map(|_| {
                number += 1;
                allocations(&mut bench, number.into(), offsets(number), length)
            })
            .sum();
        // As many as fit the fraction of a double.
        f64::from(u32::try_from(total).unwrap()) / f64::from(READS)
    };
    round();
    [round(), round()]
}

fn assert_bound(what: &str, [before, after]: [f64; 2], bound: f64) {
    println!("{what}: {before:.2} allocations per read, later {after:.2}");
    assert!(before <= bound, "{what}: {before}");
    assert!(after <= before + 0.5, "{what}: {before}, then {after}");
}

#[test]
fn a_scattered_read_allocates_no_more_than_this_and_not_more_as_time_goes_on() {
    let scattered = |number: u32| number.wrapping_mul(2_654_435_769) % (SIZE / 4096) * 4096;
    assert_bound("scattered, 4 KiB", before_and_after(4096, scattered), 15.0);
}

#[test]
fn a_read_in_a_row_allocates_no_more_than_this_and_not_more_as_time_goes_on() {
    let in_a_row = |number: u32| number % (SIZE / 65_536) * 65_536;
    assert_bound("in a row, 64 KiB", before_and_after(65_536, in_a_row), 16.0);
}
