//! Clients of a socket device, among them some that nobody wants.

use std::{io::Write, os::unix::net::UnixStream};

use crate::{Behaviour, Machine, Page, Place, Proxy, image, wait_for};

struct Attached {
    place: Place,
    proxy: Proxy,
    page: Page,
}

fn attached() -> Attached {
    let place = Place::new();
    let (proxy, page) = place.attach(&image(1 << 20), Behaviour::Serves);
    Attached { place, proxy, page }
}

impl Attached {
    /// The end: messages.
    fn finish(self) -> String {
        self.page.close();
        let (code, messages) = self.proxy.wait();
        assert_eq!(code, 0, "{messages}");
        messages
    }
}

fn reads_well(machine: &mut Machine) -> bool {
    machine.read(80, 8).unwrap() == 80_u64.to_be_bytes()
}

#[test]
fn the_export_has_the_promised_block_sizes_and_flags() {
    let attached = attached();
    let machine = attached.place.connect();
    let sizes = machine.export.block_sizes.unwrap();
    assert_eq!(
        (sizes.minimum, sizes.preferred, sizes.maximum),
        (1, 4096, 32 << 20)
    );
    let flags = machine.export.flags;
    assert!(flags.contains(
        nbd::wire::TransmissionFlags::CAN_MULTI_CONN | nbd::wire::TransmissionFlags::SEND_FLUSH
    ));
    attached.finish();
}

#[test]
fn a_client_that_disconnects_ends_neither_the_session_nor_another() {
    let attached = attached();
    let (mut one, two) = (attached.place.connect(), attached.place.connect());
    two.disconnect();
    assert!(reads_well(&mut one) && reads_well(&mut attached.place.connect()));
    attached.finish();
}

#[test]
fn many_requests_of_many_clients_are_answered() {
    let attached = attached();
    let mut machines: Vec<_> = (0..8).map(|_| attached.place.connect()).collect();
    let asked: Vec<Vec<u64>> = machines
        .iter_mut()
        .map(|machine| (0..200).map(|word| machine.ask(word * 8, 8)).collect())
        .collect();
    for (machine, cookies) in machines.iter_mut().zip(asked) {
        // Answers come in any order; the last one asked for finds all others read on the way.
        let last = *cookies.last().unwrap();
        assert_eq!(
            machine.answer(last, 199 * 8, 8).unwrap(),
            (199_u64 * 8).to_be_bytes()
        );
    }
    attached.finish();
}

#[test]
fn a_client_that_breaks_the_protocol_is_dropped_with_a_message_and_harms_no_other() {
    let attached = attached();
    let (mut good, mut bad) = (attached.place.connect(), attached.place.connect());
    bad.send_raw(&[0xff; 64]);
    assert!(bad.is_dropped() && reads_well(&mut good));
    assert!(attached.finish().contains("dropped process"));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_request_harms_no_other() {
    let attached = attached();
    let (mut good, mut bad) = (attached.place.connect(), attached.place.connect());
    bad.ask(0, 1 << 20);
    bad.send_raw(&[0x25, 0x60, 0x95]);
    drop(bad);
    assert!(reads_well(&mut good));
    attached.finish();
}

#[test]
fn a_client_that_does_not_read_its_answers_holds_up_no_other() {
    let attached = attached();
    let (mut good, mut bad) = (attached.place.connect(), attached.place.connect());
    for _ in 0..100 {
        bad.ask(0, 1 << 20);
    }
    for _ in 0..10 {
        assert!(reads_well(&mut good));
    }
    attached.finish();
}

#[test]
fn clients_that_say_nothing_are_limited_in_number() {
    let attached = attached();
    let mut good = attached.place.connect();
    let idle: Vec<UnixStream> = (0..64).map(|_| attached.place.connect_raw()).collect();
    let mut beyond = &idle[63];
    wait_for("the refusal", || {
        beyond.write_all(&[0]).is_err().then_some(())
    });
    assert!(reads_well(&mut good));
    drop(idle);
    wait_for("a free place", || {
        attached
            .place
            .connect_raw()
            .write_all(&[0; 4])
            .is_ok()
            .then_some(())
    });
    attached.finish();
}
