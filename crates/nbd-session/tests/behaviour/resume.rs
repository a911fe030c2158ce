//! The same image, or none.

use std::time::Duration;

use nbd::wire::TransmissionFlags;
use nbd_session::control::{DevicePhase, PageMessage, ServerMessage};
use nbd_session::{Closing, ImageInfo, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, WRITABLE, export, image};

const RO: TransmissionFlags = TransmissionFlags::READ_ONLY;

/// A bench whose link was lost with a read outstanding.
fn held(kind: LinkKind) -> (Bench, u64) {
    let mut bench = Bench::new(SessionConfig::default());
    bench.connect(kind, RO, image(1_000_000));
    bench.read(300_000, 4096);
    let link = bench.peer().link;
    bench
        .volume
        .handle_closed(bench.now, link, Closing::Lost("asleep".into()));
    bench.run();
    let waiting = bench.read(5000, 100);
    (bench, waiting)
}

fn assert_refused(bench: &Bench, waiting: u64, part_of_reason: &str) {
    let (code, reason) = bench.closed.last().expect("the link is closed");
    assert_eq!(*code, 4410);
    assert!(reason.contains(part_of_reason), "{reason}");
    assert_eq!(bench.answer(waiting), None);
    assert!(!bench.volume.is_ended());
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Held { .. })
    ));
}

#[test]
fn the_same_image_resumes_the_session() {
    let (mut bench, waiting) = held(LinkKind::V1);
    bench.pass(Duration::from_secs(10));
    bench.connect(LinkKind::V1, RO, image(1_000_000));
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Resumed { .. })
    ));
    assert_eq!(bench.bytes(waiting), image(6000)[5000..5100]);
    let states = bench.texts.iter().filter_map(|text| match text {
        ServerMessage::State(state) => Some((state.phase, state.resumed, state.seconds_left)),
        _ => None,
    });
    let states: Vec<_> = states.collect();
    assert_eq!(
        states[states.len() - 2..],
        [
            (DevicePhase::Held, false, Some(290)),
            (DevicePhase::Attaching, true, None)
        ]
    );
}

#[test]
fn the_first_and_last_block_and_some_that_were_read_are_compared() {
    let (mut bench, _) = held(LinkKind::V1);
    bench.connect(LinkKind::V1, RO, image(1_000_000));
    let offsets: Vec<_> = bench
        .peer()
        .asked
        .iter()
        .map(nbd::Command::offset)
        .collect();
    let last = 1_000_000 / 65_536 * 65_536;
    assert_eq!(offsets, [0, last, 300_000, 5000]);
}

#[test]
fn an_image_that_differs_where_it_was_read_is_refused() {
    for at in [0, 999_999, 300_000] {
        let (mut bench, waiting) = held(LinkKind::Plain);
        let mut other = image(1_000_000);
        other[at] ^= 1;
        bench.connect(LinkKind::Plain, RO, other);
        assert_refused(&bench, waiting, "are not those of the session's image");
        bench.connect(LinkKind::Plain, RO, image(1_000_000));
        assert_eq!(bench.bytes(waiting).len(), 100);
    }
}

#[test]
fn another_announcement_is_refused_before_the_handshake() {
    let same = ImageInfo {
        name: "x.iso".into(),
        size: 1_000_000,
        modified: Some(1),
    };
    let others = [
        (
            ImageInfo {
                size: 1_000_001,
                ..same.clone()
            },
            "its size is 1000001, not 1000000",
        ),
        (
            ImageInfo {
                name: "y.iso".into(),
                ..same.clone()
            },
            "its name is y.iso, not x.iso",
        ),
        (
            ImageInfo {
                modified: Some(2),
                ..same
            },
            "was modified",
        ),
    ];
    for (other, reason) in others {
        let (mut bench, waiting) = held(LinkKind::V1);
        let link = bench.open(LinkKind::V1, export(other.size, RO), Vec::new());
        bench.say(link, &PageMessage::Image(other).encode());
        assert_refused(&bench, waiting, reason);
    }
}

#[test]
fn an_image_that_can_do_less_is_refused() {
    let mut bench = Bench::writable(SessionConfig::default());
    let link = bench.peer().link;
    bench
        .volume
        .handle_closed(bench.now, link, Closing::Lost("asleep".into()));
    bench.run();
    let waiting = bench.read(0, 512);
    bench.connect(LinkKind::V1, WRITABLE | RO, image(65_536));
    assert_refused(&bench, waiting, "read-only now");
    bench.connect(LinkKind::V1, TransmissionFlags::SEND_FLUSH, image(65_536));
    assert_refused(&bench, waiting, "lacks abilities");
}

#[test]
fn attempts_do_not_prolong_the_hold() {
    let (mut bench, _) = held(LinkKind::Plain);
    for _ in 0..9 {
        bench.pass(Duration::from_secs(30));
        bench.connect(LinkKind::Plain, RO, image(1000));
    }
    bench.pass(Duration::from_secs(30));
    assert!(bench.volume.is_ended());
}
