//! A client of a socket device that breaks its rules, at each of the doors that a device has.

use std::{io::Write as _, time::Duration};

use super::{
    arena::{SIZE, image},
    client::{
        Client, DISC, OPT_GO, OPT_LIST, READ, TRIM, WRITE, Wire, option, option_head, request,
    },
    page::Page,
    target::{At, Target, at_each_door},
};
use crate::certificates::Authority;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const EOVERFLOW: u32 = 75;
/// The longest request, and how many clients there may be.
const MAX_PAYLOAD: u32 = 32 << 20;
const MAX_CLIENTS: usize = 64;

/// This is sent instead of an option: the client is hung up on.
#[track_caller]
fn is_dropped_in_the_handshake(attacks: &[Vec<u8>]) {
    at_each_door(|target| {
        for attack in attacks {
            let mut client = Client::haggling(&target.door);
            client.send(attack);
            client.is_hung_up();
        }
    });
}

/// Defence: crates/nbd/src/server/handshake.rs, the flags of proto.md, "Client flags".
#[test]
fn client_flags_that_do_not_exist() {
    at_each_door(|target| {
        for flags in [u32::MAX, 4] {
            let mut client = Client::connect(&target.door);
            client.send(&flags.to_be_bytes());
            client.is_hung_up();
        }
    });
}

/// Defence: crates/nbd/src/server/handshake.rs, an option's magic number.
#[test]
fn options_without_their_magic_number() {
    is_dropped_in_the_handshake(&[b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 16]]);
}

/// Defence: crates/nbd/src/server/handshake.rs, `HandshakeLimits::total`, judged by the header alone.
#[test]
fn an_option_that_promises_4_gib() {
    is_dropped_in_the_handshake(&[option_head(OPT_GO, u32::MAX), option_head(4711, u32::MAX)]);
}

/// Defence: crates/nbd/src/server/handshake.rs, `HandshakeLimits::options`.
#[test]
fn options_without_end() {
    is_dropped_in_the_handshake(&[
        option(OPT_LIST, b"").repeat(5000),
        option(4711, b"").repeat(5000),
        option(OPT_GO, b"\0\0\0\x01x\0\0").repeat(5000),
    ]);
}

/// Defence: crates/nbd/src/server/options.rs: lengths in an option lie within it. The client may go on.
#[test]
fn an_option_whose_parts_are_longer_than_it() {
    at_each_door(|target| {
        let mut client = Client::haggling(&target.door);
        client.send(&option(OPT_GO, b"\xff\xff\xff\xff\0\0"));
        let reply = client.take(20).unwrap();
        assert!(reply[12] & 0x80 != 0, "no error: {reply:x?}");
    });
}

/// Defence: crates/nbd/src/server/transmission.rs, a request's magic number.
#[test]
fn a_request_without_its_magic_number() {
    at_each_door(|target| {
        let mut client = Client::attached(&target.door);
        client.send(&[0x47; 28]);
        client.is_hung_up();
    });
}

/// Defence: crates/nbd/src/rules.rs, the longest payload, before anything is allocated. The image is longer than that.
#[test]
fn a_read_of_4_gib() {
    for at in At::ALL {
        let target = Target::of_zeros(at, 8 << 30);
        let before = target.arena.memory();
        let mut client = Client::attached(&target.door);
        for length in [u32::MAX, 1 << 31, MAX_PAYLOAD + 1] {
            let error = client.ask(READ, 0, length);
            assert!(matches!(error, Some(EINVAL | EOVERFLOW)), "{error:?}");
        }
        assert_eq!(client.ask(READ, 0, 512), Some(0));
        assert!(target.arena.memory() < before + (32 << 20));
        target.arena.survives();
    }
}

/// Defence: twice, crates/nbd/src/rules.rs and crates/nbd-session/src/volume/plan.rs: requests lie inside of the export.
/// Each alone suffices; their own tests show each.
#[test]
fn reads_past_the_end() {
    let size = SIZE as u64;
    at_each_door(|target| {
        let mut client = Client::attached(&target.door);
        for (offset, length) in [
            (size, 1),
            (size - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 511, 1024),
            (1 << 63, 512),
        ] {
            let error = client.ask(READ, offset, length);
            assert_eq!(error, Some(EINVAL), "{offset} {length}");
        }
    });
}

/// Defence: crates/nbd-session/src/volume/plan.rs, what lies behind the image in its last sector is zeros: not what was
/// in memory before, and nothing that a page is asked for.
#[test]
fn reads_behind_the_end_of_an_image_that_is_no_whole_number_of_sectors() {
    const END: usize = SIZE - 300;
    for members in ["\"hold\": 60", "\"hold\": 60, \"cache\": 0"] {
        let serve = |page: Page| page.serve(&image(SIZE)[..END]);
        let target = Target::of(At::Unix, members, END as u64, serve);
        let padded = SIZE as u64;
        let mut client = Client::attached(&target.door);
        let mut read = |offset: u64, length: u32| {
            assert_eq!(client.ask(READ, offset, length), Some(0));
            client.take(length as usize).unwrap()
        };
        // Memory is full of other bytes by then.
        let whole = read(0, u32::try_from(SIZE).unwrap());
        assert!(whole[..END] == image(SIZE)[..END]);
        for (offset, length) in [(padded - 512, 512), (padded - 4096, 4096), (padded - 1, 1)] {
            let bytes = read(offset, length);
            let behind = END.saturating_sub(usize::try_from(offset).unwrap());
            assert!(bytes[behind..].iter().all(|byte| *byte == 0), "{offset}");
        }
        assert!(whole[END..].iter().all(|byte| *byte == 0));
        assert_eq!(client.ask(READ, padded, 1), Some(EINVAL));
        target.survives();
    }
}

/// Defence: twice, crates/nbd/src/rules.rs and crates/nbd-session/src/volume/plan.rs: nothing is written to what is
/// read-only. The first of them says EPERM to a TRIM as well.
#[test]
fn a_write_to_a_read_only_device() {
    at_each_door(|target| {
        let mut client = Client::attached(&target.door);
        client.send(&[request(WRITE, 7, 0, 512), vec![0xee; 512]].concat());
        let reply = client.take(16).unwrap();
        assert_eq!(reply[4..8], EPERM.to_be_bytes());
        assert_eq!(client.ask(TRIM, 0, 512), Some(EPERM));
    });
}

/// Defence: crates/nbd/src/server/transmission.rs: what is longer than any write may be ends the connection.
#[test]
fn a_write_of_4_gib() {
    at_each_door(|target| {
        let mut client = Client::attached(&target.door);
        client.send(&request(WRITE, 7, 0, u32::MAX));
        client.is_hung_up();
    });
}

/// Defence: crates/nbd/src/server/transmission.rs: what is written in vain is skipped, not kept.
#[test]
fn a_long_write_that_cannot_be() {
    at_each_door(|target| {
        let before = target.arena.memory();
        let mut client = Client::attached(&target.door);
        assert!(client.send(&request(WRITE, 7, 0, MAX_PAYLOAD)));
        assert!(client.send(&vec![0; MAX_PAYLOAD as usize - 1]));
        let memory = target.arena.memory();
        assert!(memory < before + (16 << 20), "{memory} after {before}");
    });
}

/// Defence: crates/nbd-proxy/src/device/client/connection.rs, `leaving`.
#[test]
fn a_goodbye_in_the_middle_of_requests() {
    at_each_door(|target| {
        for _ in 0..10 {
            let mut client = Client::attached(&target.door);
            client.send(
                &[
                    request(READ, 1, 0, 65536),
                    request(DISC, 2, 0, 0),
                    request(READ, 3, 0, 512),
                ]
                .concat(),
            );
            client.is_hung_up();
        }
    });
}

/// Defence: crates/nbd-proxy/src/device/socket.rs, each client has a task of its own.
#[test]
fn half_a_request_and_then_silence() {
    for at in At::ALL {
        let target = Target::at(at, "\"hold\": 60");
        let mut clients: Vec<Client> = (0..8).map(|_| Client::attached(&target.door)).collect();
        for (count, client) in clients.iter_mut().enumerate() {
            client.send(&request(READ, 7, 0, 512)[..3 * count + 1]);
        }
        target.survives();
    }
}

/// Defence: crates/nbd-proxy/src/device/client/connection.rs, `MAX_BYTES` and `MAX_REQUESTS`.
#[test]
fn a_client_that_asks_and_never_reads() {
    for at in At::ALL {
        // Each answer has memory of its own.
        let target = Target::at(at, "\"hold\": 60, \"cache\": 0");
        let before = target.arena.memory();
        let mut client = Client::attached(&target.door);
        client.0.set_timeouts(Duration::from_millis(500));
        let requests = request(READ, 7, 0, 1 << 20).repeat(1000);
        let blocked = (0..2000).find_map(|_| client.0.write_all(&requests).err());
        assert!(blocked.is_some(), "everything is taken");
        let memory = target.arena.memory();
        assert!(memory < before + (48 << 20), "{memory} after {before}");
        target.survives();
    }
}

/// Defence: crates/nbd-proxy/src/device/socket.rs, `MAX_CLIENTS`; with TLS crates/nbd-proxy/src/device/guard.rs,
/// `STRANGERS`.
#[test]
fn a_thousand_connections() {
    at_each_door(|target| {
        let wires: Vec<Wire> = (0..1000).map(|_| target.door.dial()).collect();
        assert!(target.arena.memory() < 128 << 20);
        let is_there = |wire| {
            // Silent clients are told nothing more, so whoever is gone is seen to be.
            let mut client = Client(wire);
            let greeted = client.take(18).is_some();
            client.0.set_timeouts(Duration::from_millis(1));
            let gone = std::io::Read::read(&mut client.0, &mut [0]);
            (greeted && gone.is_err()).then_some(client)
        };
        // Who came last is heard last; by then whoever had to go for others has gone.
        let present: Vec<Client> = wires.into_iter().rev().filter_map(is_there).collect();
        assert!(present.len() <= MAX_CLIENTS, "{} are there", present.len());
        drop(present);
        target.has_room();
    });
}

/// Defence: crates/nbd-proxy/src/device/socket.rs, `Entry`: a client that has gone leaves nothing behind.
#[test]
fn a_storm_of_connections_that_come_and_go() {
    for at in At::ALL {
        let target = Target::at(at, "\"hold\": 60");
        for round in 0..500 {
            let mut wire = target.door.dial();
            if round % 2 == 0 {
                let _ = wire.write_all(&3_u32.to_be_bytes());
            }
        }
        target.has_room();
        target.becomes_free();
    }
}

/// Defence: crates/nbd-proxy/src/tls/handshakes.rs: who is still a stranger makes room for those who come, is no client,
/// and is given up in time.
#[test]
fn strangers_who_hang_in_the_handshake_of_tls() {
    /// A record of 512 bytes of which none comes (RFC 8446, section 5.1).
    const HALF_A_HELLO: [u8; 5] = [22, 3, 1, 2, 0];
    let target = Target::at(At::Tls, "\"hold\": 60");
    let mut strangers: Vec<Client> = (0..2 * MAX_CLIENTS)
        .map(|_| {
            let mut stranger = Client::before_tls(&target.door);
            stranger.send(&HALF_A_HELLO);
            stranger
        })
        .collect();
    drop(Client::attached(&target.door));
    strangers[..MAX_CLIENTS]
        .iter_mut()
        .for_each(Client::is_hung_up);
    target.becomes_free();
    drop(strangers);
}

/// Defence: crates/nbd-proxy/src/device/guard.rs, `Clients::MustShow`.
#[test]
fn a_client_without_a_certificate_of_the_authority() {
    let target = Target::at(At::Tls, "\"hold\": 60");
    let foreign = Authority::new("strangers").client("friend");
    for certificate in [None, Some(&foreign)] {
        let mut stranger = Client::before_tls(&target.door).secured(&target.door, certificate);
        stranger.send(&option(OPT_LIST, b""));
        assert_eq!(stranger.take(1), None, "it is answered");
    }
    target.becomes_free();
}
