//! The stdin/stdout form, run as websocketd and bmcweb run it: two pipes, signals, the end of input.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    process::Stdio,
};

use crate::{Behaviour, Machine, Page, Place, Proxy, image, wait_for};
use bytes::Bytes;

const SIZE: u64 = 64 << 10;

fn small_image() -> Bytes {
    image(64 << 10)
}

#[test]
fn the_machine_reads_the_image_and_its_tail_padded_with_zeros() {
    let place = Place::new();
    let content = image(1_000_001);
    let (proxy, page) = place.attach(&content, Behaviour::Serves);
    let mut machine = place.connect();
    assert_eq!(machine.export.size, 1_000_448);
    assert!(machine.export.is_read_only());
    let read = machine.read(0, 1_000_448).unwrap();
    assert!(read[..1_000_001] == content[..] && read[1_000_001..].iter().all(|byte| *byte == 0));
    assert_eq!(
        page.longest_read(),
        128 << 10,
        "a request is at most 128 KiB"
    );
    page.close();
    assert_eq!(proxy.wait().0, 0);
}

#[test]
fn no_more_than_384_kib_of_replies_are_outstanding() {
    let place = Place::new();
    let (proxy, page) = place.attach(&image(16 << 20), Behaviour::Silent);
    let mut machine = place.connect();
    for part in 0..64 {
        machine.ask(part << 18, 1 << 18);
    }
    wait_for("as many requests as there may be", || {
        (page.outstanding() > (384 - 128) << 10).then_some(())
    });
    // What was asked for once the limit was reached would show by the end.
    proxy.signal("TERM");
    assert_eq!(proxy.wait().0, 0);
    assert!(
        page.outstanding() <= 384 << 10,
        "{} bytes",
        page.outstanding()
    );
}

#[test]
fn the_socket_is_its_owners_alone_and_gone_at_the_end() {
    let place = Place::new();
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    place.connect();
    assert_eq!(
        place.socket().metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    proxy.signal("INT");
    let (code, messages) = proxy.wait();
    assert_eq!(code, 0, "{messages}");
    assert!(!place.exists("disk.sock"));
}

#[test]
fn hooks_run_around_a_session_that_its_input_ends() {
    let place = Place::new();
    place.write_hook("test -S disk.sock || exit 1");
    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    page.close();
    let (code, messages) = proxy.wait();
    assert_eq!(code, 0, "{messages}");
    assert_eq!(
        place.calls(),
        [
            place.call("start", SIZE, "attached"),
            place.call("stop", SIZE, "closed")
        ]
    );
}

#[test]
fn requests_are_served_while_start_runs() {
    let place = Place::new();
    place.write_hook("test $1 = stop || while ! test -e go; do sleep 0.01; done; touch $1.done");
    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    let mut machine = place.connect();
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    assert_eq!(machine.read(8, 8).unwrap(), 8_u64.to_be_bytes());
    std::fs::write(place.path("go"), "").unwrap();
    wait_for("the start hook's end", || {
        place.exists("start.done").then_some(())
    });
    page.close();
    assert_eq!(proxy.wait().0, 0);
    assert_eq!(place.calls().len(), 2);
}

#[test]
fn a_start_that_fails_ends_the_session_and_stop_runs() {
    let place = Place::new();
    place.write_hook("test $1 = stop");
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    let (code, messages) = proxy.wait();
    assert_eq!(code, 1);
    assert!(
        messages.contains("state start ended with status 1"),
        "{messages}"
    );
    assert_eq!(
        place.calls(),
        [
            place.call("start", SIZE, "attached"),
            place.call("stop", SIZE, "failed")
        ]
    );
    assert!(!place.exists("disk.sock"));
}

#[test]
fn a_signal_ends_a_running_start_and_stop_runs() {
    let place = Place::new();
    place.write_hook("test $1 = stop || { trap '' TERM; sleep 3600; }");
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    proxy.signal("TERM");
    assert_eq!(proxy.wait().0, 0);
    assert_eq!(place.calls()[1], place.call("stop", SIZE, "shutdown"));
}

#[test]
fn a_second_signal_does_not_abort_stop() {
    let place = Place::new();
    place.write_hook(
        "test $1 = start || { while ! test -e go; do sleep 0.01; done; touch stop.done; }",
    );
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    place.connect();
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    proxy.signal("TERM");
    wait_for("the stop hook", || (place.calls().len() == 2).then_some(()));
    proxy.signal("INT");
    proxy.signal("TERM");
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(proxy.wait().0, 0);
    assert!(place.exists("stop.done"));
    assert_eq!(place.calls().len(), 2);
}

#[test]
fn a_stop_that_fails_is_only_reported() {
    let place = Place::new();
    place.write_hook("test $1 = start");
    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    page.close();
    let (code, messages) = proxy.wait();
    assert_eq!(code, 0, "{messages}");
    assert!(
        messages.contains("state stop ended with status 1"),
        "{messages}"
    );
}

#[test]
fn requests_fail_while_stop_runs_without_a_link() {
    let place = Place::new();
    place.write_hook("test $1 = start || while ! test -e go; do sleep 0.01; done");
    let (proxy, page) = place.attach(&small_image(), Behaviour::Silent);
    let mut machine = place.connect();
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    let outstanding = machine.ask(0, 512);
    page.close();
    assert!(
        machine
            .answer(outstanding, 0, 512)
            .unwrap_err()
            .to_string()
            .contains("input/output error")
    );
    wait_for("the stop hook", || (place.calls().len() == 2).then_some(()));
    assert!(
        machine
            .read(0, 512)
            .unwrap_err()
            .to_string()
            .contains("input/output error")
    );
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(proxy.wait().0, 0);
}

#[test]
fn a_full_output_that_nobody_reads_does_not_keep_it_from_ending() {
    let place = Place::new();
    let mut proxy = place.start();
    let (output, input) = proxy.take_pipes();
    rustix::pipe::fcntl_setpipe_size(&output, 4096).unwrap();
    let _page = Page::serve(small_image(), Behaviour::Deaf, output, input);
    let mut machines: Vec<_> = (0..8).map(|_| place.connect()).collect();
    for machine in &mut machines {
        for _ in 0..32 {
            machine.ask(0, 1);
        }
    }
    proxy.signal("TERM");
    assert_eq!(proxy.wait().0, 0);
}

#[test]
fn after_a_kill_the_next_start_runs_stop_and_goes_on() {
    let place = Place::new();
    place.write_hook("");
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    place.connect();
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    proxy.signal("KILL");
    assert_eq!(proxy.wait().0, -9);
    assert!(place.exists("disk.sock"), "the dead leave their socket");

    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    assert_eq!(place.connect().read(8, 8).unwrap(), 8_u64.to_be_bytes());
    wait_for("the start hook", || {
        (place.calls().len() == 3).then_some(())
    });
    page.close();
    assert_eq!(proxy.wait().0, 0);
    let [first, recovered, second, last] = &place.calls()[..] else {
        panic!("{:?}", place.calls())
    };
    assert_eq!(
        (first, recovered),
        (
            &place.call("start", SIZE, "attached"),
            &place.call("stop", SIZE, "recovered")
        )
    );
    assert_eq!(
        (second, last),
        (
            &place.call("start", SIZE, "attached"),
            &place.call("stop", SIZE, "closed")
        )
    );
}

#[test]
fn a_configuration_has_one_session_at_a_time() {
    let place = Place::new();
    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    let mut machine = place.connect();
    let (code, _, messages) = place.run(&["0"]);
    assert_eq!(code, 1);
    assert!(
        messages.contains(&format!(
            "in use by another nbd-proxy, process {}",
            proxy.id()
        )),
        "{messages}"
    );
    assert!(machine.read(0, 512).is_ok(), "the first is unharmed");
    page.close();
    assert_eq!(proxy.wait().0, 0);
}

#[test]
fn whoever_comes_while_the_last_one_ends_is_let_in() {
    let place = Place::new();
    place.write_hook("test $1 = start || while ! test -e go; do sleep 0.01; done");
    let (first, page) = place.attach(&small_image(), Behaviour::Serves);
    wait_for("the start hook", || {
        (place.calls().len() == 1).then_some(())
    });
    page.close();
    wait_for("the stop hook", || (place.calls().len() == 2).then_some(()));
    let (second, _page) = place.attach(&small_image(), Behaviour::Serves);
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(first.wait().0, 0);
    wait_for("the second session", || {
        (place.calls().len() == 3).then_some(())
    });
    second.signal("TERM");
    assert_eq!(second.wait().0, 0);
}

#[test]
fn an_empty_image_is_refused_with_a_reason() {
    let place = Place::new();
    let (proxy, _page) = place.attach(&Bytes::new(), Behaviour::Serves);
    let (code, messages) = proxy.wait();
    assert_eq!(code, 1);
    assert!(messages.contains("empty"), "{messages}");
}

#[test]
fn a_peer_that_does_not_speak_nbd_is_told_of() {
    let place = Place::new();
    let mut proxy = place.start();
    let (_output, mut input) = proxy.take_pipes();
    input
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap();
    let (code, messages) = proxy.wait();
    assert_eq!(code, 1, "{messages}");
}

#[test]
fn an_end_before_the_image_is_known_is_a_failure() {
    let place = Place::new();
    place.write_hook("");
    let (code, output, messages) = place.run(&["0"]);
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(
        messages.contains("before the image was known"),
        "{messages}"
    );
    assert!(place.calls().is_empty());
}

#[test]
fn what_is_at_the_sockets_path_already_stays() {
    let place = Place::new();
    std::fs::write(place.socket(), "precious").unwrap();
    let (code, _, messages) = place.run(&["0"]);
    assert_eq!(code, 1);
    assert!(messages.contains("is not a socket"), "{messages}");
    assert_eq!(std::fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn a_socket_on_which_somebody_listens_is_refused_and_unharmed() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let (code, _, messages) = place.run(&["0"]);
    assert_eq!(code, 1);
    assert!(
        messages.contains("in use: another process listens on it"),
        "{messages}"
    );
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok());
    assert!(UnixStream::connect(place.socket()).is_ok());
}

#[test]
fn a_path_that_no_socket_can_have_is_refused_with_the_length_that_it_may_have() {
    let place = Place::new();
    let path = place.path(&"x".repeat(120));
    place.write_config(&format!(
        r#"{{"configurations": {{"0": {{"device": "unix:{}"}}}}}}"#,
        path.display()
    ));
    let (proxy, _page) = place.attach(&small_image(), Behaviour::Serves);
    let (code, messages) = proxy.wait();
    assert_eq!(code, 1);
    assert!(messages.contains("too long for a socket"), "{messages}");
}

#[test]
fn a_record_of_another_version_does_not_keep_it_from_starting() {
    let place = Place::new();
    place.write_hook("");
    std::fs::create_dir(place.path("run")).unwrap();
    std::fs::write(place.path("run/0.state"), "[later]").unwrap();
    let (code, _, _) = place.run(&["0"]);
    assert_eq!(code, 1, "for want of a page");
    assert_eq!(place.calls(), ["stop|0||0|0||||recovered"]);
    assert!(!place.exists("run/0.state"));
}

#[test]
fn standard_input_and_output_may_be_one_non_blocking_socket() {
    let place = Place::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut command = place.program(&["0"]);
    let end = |stream: &UnixStream| Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
    let proxy = Proxy::new(
        command
            .stdin(end(&theirs))
            .stdout(end(&theirs))
            .spawn()
            .unwrap(),
    );
    // The command holds copies of the ends, which would keep the connection open.
    drop((command, theirs));
    let content = image(3 << 20);
    let _page = Page::serve(
        content.clone(),
        Behaviour::Serves,
        ours.try_clone().unwrap(),
        ours.try_clone().unwrap(),
    );
    assert!(place.connect().read(0, 3 << 20).unwrap() == content[..]);
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(proxy.wait().0, 0);
}

#[test]
fn standard_input_may_be_a_file() {
    let place = Place::new();
    std::fs::write(place.path("noise"), vec![7; 100_000]).unwrap();
    let input = File::open(place.path("noise")).unwrap();
    let proxy = Proxy::new(
        place
            .program(&["0"])
            .stdin(Stdio::from(input))
            .spawn()
            .unwrap(),
    );
    assert_eq!(proxy.wait().0, 1);
}

#[test]
fn standard_output_carries_nothing_but_nbd() {
    let place = Place::new();
    let mut proxy = place.start();
    let (mut output, input) = proxy.take_pipes();
    drop(input);
    assert_eq!(proxy.wait().0, 1);
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert!(bytes.is_empty(), "the server speaks first");
}

#[test]
fn an_export_is_found_by_the_configurations_name_and_by_no_other() {
    let place = Place::new();
    let (proxy, page) = place.attach(&small_image(), Behaviour::Serves);
    assert_eq!(Machine::new(place.connect_raw(), "0").export.size, SIZE);
    assert!(Machine::choose(place.connect_raw(), "other").is_err());
    page.close();
    assert_eq!(proxy.wait().0, 0);
}
