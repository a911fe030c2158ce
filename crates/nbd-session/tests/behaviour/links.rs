//! Handshakes, beats, silence, and peers that break rules.

use std::time::Duration;

use bytes::Bytes;
use nbd::Command;
use nbd::wire::TransmissionFlags;
use nbd_session::control::{DevicePhase, PageMessage, ServerMessage};
use nbd_session::{Closing, EndReason, LinkKind, SessionConfig, SessionEvent};

use crate::bench::{Bench, Mood, announcement, export, image};

const RO: TransmissionFlags = TransmissionFlags::READ_ONLY;

fn refusal(bench: &Bench) -> &str {
    let Some(SessionEvent::Ended(EndReason::Refused(reason))) = bench.events.last() else {
        panic!("{:?}", bench.events)
    };
    reason
}

#[test]
fn an_empty_image_is_refused_with_a_reason() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.connect(LinkKind::Plain, RO, Vec::new());
    assert_eq!(bench.closed[0].0, 4400);
    assert!(refusal(&bench).contains("empty"));
}

#[test]
fn an_image_larger_than_any_device_is_refused() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.open(LinkKind::Plain, export(i64::MAX as u64, RO), Vec::new());
    bench.greet();
    assert_eq!(bench.closed[0].0, 4400);
    assert!(refusal(&bench).contains("more than a device can have"));
}

#[test]
fn an_image_of_another_size_than_announced_is_refused() {
    let mut bench = Bench::new(SessionConfig::default());
    let link = bench.open(LinkKind::V1, export(1000, RO), image(1000));
    bench.say(link, &announcement(999).encode());
    bench.greet();
    assert_eq!(bench.closed[0].0, 4400);
    assert_eq!(
        refusal(&bench),
        "999 bytes were announced, but the export has 1000"
    );
}

#[test]
fn nbd_before_the_announcement_breaks_a_rule() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.open(LinkKind::V1, export(1000, RO), image(1000));
    bench.greet();
    assert_eq!(
        bench.closed,
        [(1002, "NBD bytes before the `image` message".into())]
    );
}

#[test]
fn text_on_a_plain_link_breaks_a_rule() {
    let mut bench = Bench::new(SessionConfig::default());
    let link = bench.connect(LinkKind::Plain, RO, image(1000));
    bench.say(link, &PageMessage::Bye.encode());
    assert_eq!(
        bench.closed,
        [(1002, "a text message on a plain link".into())]
    );
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Held { .. })
    ));
}

#[test]
fn a_reply_that_nobody_asked_for_breaks_a_rule_and_the_session_is_held() {
    let mut bench = Bench::serving(SessionConfig::default(), 1000);
    let link = bench.peer().link;
    let reply = [
        &0x6744_6698_u32.to_be_bytes()[..],
        &[0; 4],
        &77_u64.to_be_bytes(),
    ]
    .concat();
    bench.send(link, Bytes::from(reply));
    assert_eq!(bench.closed[0].0, 1002);
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Held { .. })
    ));
}

#[test]
fn a_handshake_takes_no_longer_than_a_request() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.open(LinkKind::Plain, export(1000, RO), image(1000));
    bench.pass(Duration::from_secs(29));
    assert!(bench.closed.is_empty());
    bench.pass(Duration::from_secs(1));
    assert_eq!(
        bench.closed,
        [(4408, "no NBD handshake within 30 s".into())]
    );
    assert!(bench.volume.is_ended());
}

#[test]
fn the_server_beats_every_five_seconds() {
    let mut bench = Bench::serving(SessionConfig::default(), 1000);
    let link = bench.peer().link;
    for _ in 0..4 {
        bench.pass(Duration::from_secs(5));
        bench.volume.handle_alive(bench.now, link);
    }
    let beats = bench
        .texts
        .iter()
        .filter(|text| **text == ServerMessage::Beat)
        .count();
    assert_eq!(beats, 4);
}

#[test]
fn a_ping_is_answered_at_once_so_that_the_page_can_measure_the_line() {
    let mut bench = Bench::serving(SessionConfig::default(), 1000);
    let link = bench.peer().link;
    bench.say(link, &PageMessage::Ping.encode());
    assert_eq!(bench.texts.last(), Some(&ServerMessage::Pong));
}

#[test]
fn fifteen_seconds_of_silence_are_a_loss() {
    let mut bench = Bench::serving(SessionConfig::default(), 1000);
    let link = bench.peer().link;
    bench.pass(Duration::from_secs(10));
    bench.volume.handle_alive(bench.now, link);
    bench.pass(Duration::from_millis(14_999));
    assert!(bench.closed.is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.closed, [(4408, "silent for 15 s".into())]);
    assert!(matches!(
        bench.events.last(),
        Some(SessionEvent::Held { .. })
    ));
}

#[test]
fn a_plain_link_may_be_silent() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.connect(LinkKind::Plain, RO, image(1000));
    bench.pass(Duration::from_secs(3600));
    assert!(bench.closed.is_empty() && bench.texts.is_empty());
}

#[test]
fn the_peer_is_told_what_has_become_of_its_image() {
    let config = SessionConfig {
        configuration: "lab".into(),
        ..SessionConfig::default()
    };
    let mut bench = Bench::serving(config, 1000);
    bench
        .volume
        .set_device(bench.now, DevicePhase::Attached, Some("/dev/nbd0".into()));
    bench.run();
    let Some(ServerMessage::State(state)) = bench.texts.last() else {
        panic!("{:?}", bench.texts)
    };
    assert_eq!(
        (state.phase, state.configuration.as_str()),
        (DevicePhase::Attached, "lab")
    );
    assert_eq!(
        (state.device.as_deref(), state.size, state.read_only),
        (Some("/dev/nbd0"), 1024, true)
    );
    assert_eq!((state.resumed, state.seconds_left), (false, None));
}

#[test]
fn a_newer_link_supersedes_the_older_at_once_and_its_late_replies_are_dropped() {
    let mut bench = Bench::serving(SessionConfig::default(), 100_000);
    bench.peer().mood = Mood::Hangs;
    let request = bench.read(1000, 5000);
    let mut older = bench.peers.pop().unwrap();
    bench.connect(LinkKind::V1, RO, image(100_000));
    assert_eq!(bench.closed, [(4412, "superseded by a newer link".into())]);
    assert_eq!(bench.bytes(request), image(100_000)[1000..6000]);
    older.mood = Mood::Answers;
    bench
        .volume
        .handle_data(bench.now, older.link, Bytes::from_static(&[0xff; 100]));
    bench.volume.handle_text(bench.now, older.link, "{");
    bench
        .volume
        .handle_closed(bench.now, older.link, Closing::Clean);
    bench.run();
    assert_eq!(bench.closed.len(), 1);
    assert!(!bench.volume.is_ended());
}

#[test]
fn what_is_in_flight_is_bounded_under_parallel_readers() {
    let mut bench = Bench::serving(SessionConfig::default(), 16 << 20);
    bench.peer().mood = Mood::Hangs;
    bench.peer().asked.clear();
    for request in 0..64 {
        bench.read(request * (128 << 10), 128 << 10);
    }
    let mut answered = 0;
    while answered < 64 {
        let asked: Vec<_> = bench.peer().asked.drain(..).collect();
        assert!(!asked.is_empty());
        assert!(
            asked
                .iter()
                .map(|command| command.length() + 28)
                .sum::<u64>()
                <= 384 << 10
        );
        answered += asked.len();
        bench.answer_kept();
    }
    assert_eq!(bench.completed.len(), 64);
}

#[test]
fn small_reads_do_not_wait_for_long_ones() {
    let mut bench = Bench::serving(SessionConfig::default(), 16 << 20);
    bench.peer().mood = Mood::Hangs;
    bench.read(0, 8 << 20);
    let small = bench.read(8 << 20, 4096);
    bench.answer_kept();
    assert_eq!(bench.bytes(small).len(), 4096);
    assert!(bench.completed.len() == 1);
}

/// A server as the prototype's: EXPORT_NAME and simple replies, nothing else.
#[test]
fn a_prototype_server_is_served_from() {
    let mut bench = Bench::new(SessionConfig {
        one_link: true,
        ..SessionConfig::default()
    });
    let link = bench.open(LinkKind::Plain, export(1000, RO), Vec::new());
    let mut greeting = 0x4e42_444d_4147_4943_u64.to_be_bytes().to_vec();
    greeting.extend(0x4948_4156_454f_5054_u64.to_be_bytes());
    greeting.extend([0, 0]);
    bench
        .volume
        .handle_data(bench.now, link, Bytes::from(greeting));
    // Without FIXED_NEWSTYLE there is one option, EXPORT_NAME, and its answer has 124 reserved zeroes.
    let mut answer = 1000_u64.to_be_bytes().to_vec();
    answer.extend([0, 3]);
    answer.extend([0; 124]);
    bench
        .volume
        .handle_data(bench.now, link, Bytes::from(answer));
    let sent: Vec<u8> = take_sent(&mut bench).concat();
    assert_eq!(sent[4..12], *b"IHAVEOPT");
    assert_eq!(sent[12..16], 1_u32.to_be_bytes());
    let id = nbd_session::RequestId(0);
    let read = Command::Read {
        offset: 512,
        length: 512,
    };
    bench
        .volume
        .submit(bench.now, id, nbd::wire::CommandFlags::empty(), read);
    let request = take_sent(&mut bench).concat();
    // The padding is ours: 488 bytes are left of the image.
    assert_eq!(request[request.len() - 4..], 488_u32.to_be_bytes());
    let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
    reply.extend([0; 4]);
    reply.extend(&request[8..16]);
    reply.extend([7; 488]);
    bench.send(link, Bytes::from(reply));
    assert_eq!(bench.bytes(0), [vec![7; 488], vec![0; 24]].concat());
}

/// What was sent, without giving it to the peer.
fn take_sent(bench: &mut Bench) -> Vec<Bytes> {
    let outputs = std::iter::from_fn(|| bench.volume.poll_output());
    let sent = outputs.filter_map(|output| match output {
        nbd_session::Output::Send { data, .. } => Some(data),
        _ => None,
    });
    sent.collect()
}
