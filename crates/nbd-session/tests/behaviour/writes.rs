//! Writes are there after a loss, or the machine is told.

use std::time::Duration;

use nbd::wire::Errno;
use nbd::{Command, Reply};
use nbd_session::{Closing, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, Mood, WRITABLE, image};

fn reload(bench: &mut Bench) {
    let link = bench.peer().link;
    bench
        .volume
        .handle_closed(bench.now, link, Closing::Lost("reloaded".into()));
    bench.connect(LinkKind::V1, WRITABLE, image(65_536));
}

/// Where the newest peer was asked to write.
fn written(bench: &mut Bench) -> Vec<u64> {
    let asked = &bench.peer().asked;
    let writes = asked.iter().filter(|command| command.is_write());
    writes.map(Command::offset).collect()
}

#[test]
fn what_a_reloaded_page_forgot_is_written_again_in_order() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.write(0, 1, 1024);
    bench.write(512, 2, 1024);
    bench.submit(Command::Trim {
        offset: 8192,
        length: 512,
    });
    reload(&mut bench);
    let read = bench.read(0, 2048);
    assert_eq!(
        bench.bytes(read),
        [vec![1; 512], vec![2; 1024], image(2048)[1536..].to_vec()].concat()
    );
    assert_eq!(written(&mut bench), [0, 512, 8192]);
}

#[test]
fn what_was_flushed_is_not_written_again() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.write(0, 1, 512);
    let flush = bench.submit(Command::Flush);
    assert_eq!(bench.answer(flush), Some(&Ok(Reply::Done)));
    bench.write(512, 2, 512);
    reload(&mut bench);
    assert_eq!(written(&mut bench), [512]);
}

#[test]
fn a_write_that_is_answered_while_a_flush_is_under_way_is_written_again() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.peer().mood = Mood::Hangs;
    let write = bench.write(512, 2, 512);
    let flush = bench.submit(Command::Flush);
    bench.answer_kept();
    assert_eq!(bench.answer(write), Some(&Ok(Reply::Done)));
    assert_eq!(bench.answer(flush), Some(&Ok(Reply::Done)));
    reload(&mut bench);
    assert_eq!(written(&mut bench), [512]);
}

#[test]
fn a_write_that_is_answered_while_a_full_log_is_flushed_is_written_again() {
    let config = SessionConfig {
        replay_limit: 0,
        max_request: 4096,
        ..SessionConfig::default()
    };
    let mut bench = Bench::writable(config);
    bench.write(0, 1, 4096);
    bench.peer().mood = Mood::Hangs;
    let write = bench.write(4096, 2, 1024);
    bench.write(8192, 3, 4096);
    assert_eq!(bench.peer().asked.last(), Some(&Command::Flush));
    bench.answer_kept();
    assert_eq!(bench.answer(write), Some(&Ok(Reply::Done)));
    reload(&mut bench);
    assert_eq!(written(&mut bench), [4096, 8192]);
}

#[test]
fn a_full_log_is_flushed_without_being_asked() {
    let config = SessionConfig {
        replay_limit: 0,
        max_request: 4096,
        ..SessionConfig::default()
    };
    let mut bench = Bench::writable(config);
    for request in 0..16 {
        let write = bench.write(request * 4096, 9, 4096);
        assert_eq!(bench.answer(write), Some(&Ok(Reply::Done)));
    }
    let asked = &bench.peer().asked;
    let written_at_once = asked
        .split(|command| *command == Command::Flush)
        .map(<[Command]>::len)
        .max();
    assert!(written_at_once <= Some(3), "{asked:?}");
}

#[test]
fn a_write_that_cannot_be_done_again_fails_the_next_flush() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.write(0, 1, 512);
    bench.mood = Mood::RefusesWrites;
    reload(&mut bench);
    let first = bench.submit(Command::Flush);
    let second = bench.submit(Command::Flush);
    assert_eq!(bench.answer(first), Some(&Err(Errno::EIO)));
    assert_eq!(bench.answer(second), Some(&Ok(Reply::Done)));
}

#[test]
fn a_peer_that_never_answers_replayed_writes_does_not_hang_the_machine() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.write(0, 1, 512);
    bench.mood = Mood::HangsOnWrites;
    reload(&mut bench);
    let flush = bench.submit(Command::Flush);
    for _ in 0..2 {
        assert_eq!(bench.answer(flush), None);
        bench.connect(LinkKind::Plain, WRITABLE, image(65_536));
        bench.pass(Duration::from_secs(30));
    }
    bench.connect(LinkKind::Plain, WRITABLE, image(65_536));
    assert_eq!(bench.answer(flush), Some(&Err(Errno::EIO)));
}

#[test]
fn what_a_failed_write_may_have_left_is_not_compared() {
    let mut bench = Bench::writable(SessionConfig::default());
    bench.peer().mood = Mood::DeniesWrites;
    let write = bench.write(4096, 1, 512);
    assert_eq!(bench.answer(write), Some(&Err(Errno::EIO)));
    let read = bench.read(4096, 512);
    assert_eq!(bench.bytes(read), [1; 512]);
    reload(&mut bench);
    assert!(bench.closed.is_empty(), "{:?}", bench.closed);
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Resumed { .. })
    ));
}
