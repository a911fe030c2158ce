//! A session that goes on in another process.

use std::time::Duration;

use nbd::wire::TransmissionFlags;
use nbd_session::{
    Closing, EndReason, LinkKind, RestoreError, Session, SessionConfig, SessionEvent, Snapshot,
    Volume,
};

use crate::bench::{Bench, image};

const RO: TransmissionFlags = TransmissionFlags::READ_ONLY;

/// What a bench that had served this image leaves, by way of a file.
fn left(bench: &Bench) -> Snapshot {
    let text = serde_json::to_string(&bench.volume.snapshot().unwrap()).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn served() -> Bench {
    let mut bench = Bench::serving(SessionConfig::default(), 1_000_000);
    bench.read(300_000, 4096);
    bench
}

/// A bench of another process.
fn restored(snapshot: Snapshot) -> Bench {
    let config = SessionConfig {
        seed: 99,
        ..SessionConfig::default()
    };
    let mut bench = Bench::new(config.clone());
    bench.volume = Volume::new(Session::restore(config, bench.now, snapshot).unwrap());
    bench.run();
    bench
}

#[test]
fn it_is_held_and_has_its_image_from_the_beginning() {
    let mut bench = restored(left(&served()));
    assert!(matches!(bench.events[..], [SessionEvent::Held { .. }]));
    let geometry = bench.volume.geometry().unwrap().clone();
    assert_eq!((geometry.image_size, geometry.read_only), (1_000_000, true));
    assert_eq!(geometry.name, "x.iso");
    let waiting = bench.read(5000, 100);
    assert_eq!(bench.answer(waiting), None);
    bench.connect(LinkKind::V1, RO, image(1_000_000));
    assert_eq!(bench.bytes(waiting), image(6000)[5000..5100]);
    let resumed = |event: &SessionEvent| matches!(event, SessionEvent::Resumed { .. });
    assert!(bench.events.last().is_some_and(resumed));
}

#[test]
fn another_image_than_the_other_process_saw_is_refused() {
    for at in [0, 999_999, 300_000] {
        let mut bench = restored(left(&served()));
        let mut other = image(1_000_000);
        other[at] ^= 1;
        bench.connect(LinkKind::V1, RO, other);
        assert_eq!(bench.closed.last().unwrap().0, 4410);
    }
    let mut bench = restored(left(&served()));
    bench.connect(LinkKind::V1, RO, image(1_000_001));
    assert_eq!(bench.closed.last().unwrap().0, 4410);
}

#[test]
fn it_ends_where_nobody_comes_while_it_is_held_anew() {
    let mut bench = restored(left(&served()));
    let waiting = bench.read(0, 512);
    bench.pass(Duration::from_secs(299));
    assert!(!bench.volume.is_ended());
    bench.pass(Duration::from_secs(1));
    assert!(bench.volume.is_ended());
    assert!(bench.answer(waiting).unwrap().is_err());
}

#[test]
fn it_survives_a_second_restart_without_a_link_in_between() {
    let second = left(&restored(left(&served())));
    assert_eq!(second, left(&served()));
    let mut bench = restored(second);
    bench.connect(LinkKind::V1, RO, image(1_000_000));
    bench.read(700_000, 512);
    assert_eq!(bench.completed.len(), 1);
}

#[test]
fn its_revision_grows_with_what_is_seen() {
    let mut bench = Bench::serving(SessionConfig::default(), 1_000_000);
    let before = bench.volume.revision();
    bench.read(300_000, 4096);
    assert!(bench.volume.revision() > before);
}

#[test]
fn a_smaller_request_size_compares_what_it_still_can() {
    let snapshot = left(&served());
    let config = SessionConfig {
        max_request: 8192,
        ..SessionConfig::default()
    };
    let mut bench = Bench::new(config.clone());
    bench.volume = Volume::new(Session::restore(config, bench.now, snapshot).unwrap());
    bench.connect(LinkKind::V1, RO, image(1_000_000));
    let asked: Vec<_> = bench
        .peer()
        .asked
        .iter()
        .map(nbd::Command::offset)
        .collect();
    assert_eq!(asked, [300_000]);
}

#[test]
fn what_cannot_go_on_leaves_no_snapshot() {
    assert_eq!(
        Bench::new(SessionConfig::default()).volume.snapshot(),
        None,
        "no image yet"
    );
    let writable = Bench::writable(SessionConfig::default());
    assert_eq!(writable.volume.snapshot(), None, "writes may be lost");
    let not_held = SessionConfig {
        hold: Duration::ZERO,
        ..SessionConfig::default()
    };
    assert_eq!(
        Bench::serving(not_held, 1000).volume.snapshot(),
        None,
        "not held"
    );
    let mut bench = served();
    bench.volume.drain(bench.now, EndReason::Ejected);
    assert_eq!(bench.volume.snapshot(), None, "about to end");
    let mut bench = served();
    let link = bench.peer().link;
    bench
        .volume
        .handle_closed(bench.now, link, Closing::Lost("asleep".into()));
    assert!(bench.volume.snapshot().is_some(), "held");
}

#[test]
fn a_record_that_makes_no_sense_is_refused() {
    let mut bench = Bench::new(SessionConfig::default());
    let text = serde_json::to_value(left(&served())).unwrap();
    let mut restore = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut text = text.clone();
        change(&mut text);
        let snapshot = serde_json::from_value(text).unwrap();
        let restored = Session::restore(SessionConfig::default(), bench.now, snapshot);
        bench.run();
        restored.err()
    };
    assert_eq!(restore(&|_| {}), None);
    let empty = restore(&|text| text["export"]["size"] = 0.into());
    assert!(matches!(empty, Some(RestoreError::Malformed(_))));
    let writable = restore(&|text| text["export"]["flags"] = 1.into());
    assert_eq!(writable, Some(RestoreError::Writable));
    let sizes = restore(&|text| text["export"]["block_sizes"] = serde_json::json!([3, 4, 5]));
    assert!(matches!(sizes, Some(RestoreError::Malformed(_))));
}
