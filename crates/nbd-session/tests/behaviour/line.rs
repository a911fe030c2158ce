//! Readers in a row over a line with a delay, in virtual time: how much of the line they get.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::wire::TransmissionFlags;
use nbd_session::{LinkId, LinkKind, Session, SessionConfig, Volume};

use crate::bench::{Bench, Mood, image};

/// How much of an answer comes at once, in bytes: a peer's message.
const MESSAGE: usize = 256 << 10;

/// How long a reader takes for what it has read.
const THINKING: Duration = Duration::from_micros(100);

/// How much is read, in bytes.
const SIZE: usize = 24 << 20;

/// A line to a peer that answers at once.
struct Line {
    round_trip: Duration,
    /// In bytes a second.
    rate: u32,
    /// When it is free again.
    free: Instant,
    coming: VecDeque<(Instant, LinkId, Bytes)>,
}

impl Line {
    /// What the peer was asked for comes in a round trip, and after what comes already.
    fn ask(&mut self, bench: &mut Bench) {
        let (link, answer) = bench.peer().take_answer();
        let mut begins = self.free.max(bench.now + self.round_trip);
        for message in answer.chunks(MESSAGE) {
            let length = u32::try_from(message.len()).unwrap();
            begins += Duration::from_secs(1) * length / self.rate;
            let message = Bytes::copy_from_slice(message);
            self.coming.push_back((begins, link, message));
            self.free = begins;
        }
    }

    /// Waits for the next message.
    fn come(&mut self, bench: &mut Bench) {
        let (at, link, message) = self.coming.pop_front().expect("something was asked for");
        bench.pass(at.saturating_duration_since(bench.now));
        bench.send(link, message);
        self.ask(bench);
    }
}

/// For how many round trips a cold reader of 24 MiB leaves the line empty, with one read of `length` bytes at a time.
fn round_trips_lost(round_trip: Duration, megabits: u32, length: u32) -> f64 {
    let config = SessionConfig {
        max_request: 4 << 20,
        max_in_flight: 32 << 20,
        ..SessionConfig::default()
    };
    let rate = megabits * 1_000_000 / 8;
    let mut bench = Bench::new(config.clone());
    bench.volume = Volume::new(Session::new(config)).with_cache(32 << 20);
    bench.connect(LinkKind::V1, TransmissionFlags::READ_ONLY, image(SIZE));
    bench.peer().mood = Mood::Hangs;
    let begin = bench.now;
    let mut line = Line {
        round_trip,
        rate,
        free: begin,
        coming: VecDeque::new(),
    };
    for at in (0..SIZE as u64).step_by(length as usize) {
        let read = bench.read(at, length.min(u32::try_from(SIZE as u64 - at).unwrap()));
        line.ask(&mut bench);
        while bench.answer(read).is_none() {
            line.come(&mut bench);
        }
        bench.completed.clear();
        bench.pass(THINKING);
    }
    let carried = SIZE as f64 / f64::from(rate);
    ((bench.now - begin).as_secs_f64() - carried) / round_trip.as_secs_f64()
}

#[test]
fn a_cold_reader_in_a_row_soon_has_the_whole_line() {
    for (round_trip, megabits, length, most) in [
        (50, 100, 64 << 10, 3.5),
        (50, 100, 512 << 10, 2.1),
        (50, 1000, 128 << 10, 6.0),
        (50, 1000, 2 << 20, 3.5),
        (200, 20, 64 << 10, 3.5),
        (200, 20, 512 << 10, 2.1),
    ] {
        let lost = round_trips_lost(Duration::from_millis(round_trip), megabits, length);
        let line = format!("{round_trip} ms, {megabits} Mbit/s, reads of {length}");
        assert!(lost <= most, "{line}: {lost} round trips");
    }
}

/// How many requests the peer has seen when three quarters of a first one of 1 MiB have come, slowly, and another one of
/// 1 MiB waits.
fn asked_with_a_request_in_part(max_in_flight: u64) -> usize {
    let config = SessionConfig {
        max_request: 4 << 20,
        max_in_flight,
        ..SessionConfig::default()
    };
    let mut bench = Bench::serving(config, 4 << 20);
    // The rates of the beginning are forgotten.
    for _ in 0..3 {
        bench.pass(Duration::from_secs(6));
        bench.read(0, 512);
    }
    bench.peer().mood = Mood::Hangs;
    bench.read(0, 1 << 20);
    bench.read(1 << 20, 1 << 20);
    let (before, (link, answer)) = (bench.peer().asked.len(), bench.peer().take_answer());
    for piece in answer.chunks(answer.len() / 4).take(3) {
        bench.pass(Duration::from_secs(1));
        bench.send(link, Bytes::copy_from_slice(piece));
    }
    bench.peer().asked.len() - before
}

#[test]
fn what_has_come_of_a_request_leaves_the_line_to_another() {
    assert_eq!(asked_with_a_request_in_part(8 << 20), 1);
}

#[test]
fn what_has_come_of_a_request_still_counts_as_memory() {
    assert_eq!(asked_with_a_request_in_part(3 << 19), 0);
}
