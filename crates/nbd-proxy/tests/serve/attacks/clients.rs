//! A client of a socket device that breaks its rules.

use std::{io::Write as _, os::unix::net::UnixStream, path::PathBuf, thread, time::Duration};

use super::{
    arena::{Arena, LENGTH, PLACE, SIZE, image},
    client::{Client, DISC, OPT_GO, OPT_LIST, READ, TRIM, WRITE, option, option_head, request},
    page::Kind,
};
use crate::{disk::Disk, harness::wait_for};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const EOVERFLOW: u32 = 75;

/// A session whose page is honest, and another client of its device.
struct Target {
    arena: Arena,
    friend: Disk,
}

impl Target {
    fn new() -> Self {
        let arena = Arena::new();
        let page = arena.attached(Kind::Plain, false);
        thread::spawn(move || page.serve(&image(SIZE)));
        let friend = Disk::connect(&arena.server.device());
        Self { arena, friend }
    }

    fn device(&self) -> PathBuf {
        self.arena.server.device()
    }

    /// The device's other client reads on, and so does everybody else.
    fn survives(mut self) {
        let bytes = self.friend.read(PLACE as u64, LENGTH).unwrap();
        assert!(bytes == super::arena::expected(), "wrong bytes");
        assert_eq!(self.arena.server.session()["state"], "attached");
        self.arena.survives();
    }
}

/// This is sent instead of a client's flags: the client is hung up on.
#[track_caller]
fn is_dropped_in_the_handshake(attacks: &[Vec<u8>]) {
    let target = Target::new();
    for attack in attacks {
        let mut client = Client::connect(&target.device());
        client.send(attack);
        client.is_hung_up();
    }
    target.survives();
}

fn with_flags(rest: &[u8]) -> Vec<u8> {
    [&3_u32.to_be_bytes()[..], rest].concat()
}

/// Defence: crates/nbd/src/server/handshake.rs, the flags of proto.md, "Client flags".
#[test]
fn client_flags_that_do_not_exist() {
    is_dropped_in_the_handshake(&[vec![0xff; 4], 4_u32.to_be_bytes().to_vec()]);
}

/// Defence: crates/nbd/src/server/handshake.rs, an option's magic number.
#[test]
fn options_without_their_magic_number() {
    is_dropped_in_the_handshake(&[with_flags(b"GET / HTTP/1.1\r\n\r\n"), with_flags(&[0; 16])]);
}

/// Defence: crates/nbd/src/server/haggling.rs, `HandshakeLimits::option_length`, judged by the header alone.
#[test]
fn an_option_that_promises_4_gib() {
    is_dropped_in_the_handshake(&[
        with_flags(&option_head(OPT_GO, u32::MAX)),
        with_flags(&option_head(4711, u32::MAX)),
    ]);
}

/// Defence: crates/nbd/src/server/haggling.rs, `HandshakeLimits::options`.
#[test]
fn options_without_end() {
    is_dropped_in_the_handshake(&[
        with_flags(&option(OPT_LIST, b"").repeat(5000)),
        with_flags(&option(4711, b"").repeat(5000)),
        with_flags(&option(OPT_GO, b"\0\0\0\x01x\0\0").repeat(5000)),
    ]);
}

/// Defence: crates/nbd/src/server/options.rs: lengths in an option lie within it. The client may go on.
#[test]
fn an_option_whose_parts_are_longer_than_it() {
    let target = Target::new();
    let mut client = Client::connect(&target.device());
    client.send(&with_flags(&option(OPT_GO, b"\xff\xff\xff\xff\0\0")));
    let reply = client.take(20).unwrap();
    assert!(reply[12] & 0x80 != 0, "no error: {reply:x?}");
    target.survives();
}

/// Defence: crates/nbd/src/server/transmission.rs, a request's magic number.
#[test]
fn a_request_without_its_magic_number() {
    let target = Target::new();
    let mut client = Client::attached(&target.device());
    client.send(&[0x47; 28]);
    client.is_hung_up();
    target.survives();
}

/// Defence: crates/nbd/src/rules.rs, the longest payload, before anything is allocated.
#[test]
fn a_read_of_4_gib() {
    let target = Target::new();
    let mut client = Client::attached(&target.device());
    let error = client.ask(READ, 0, u32::MAX);
    assert!(matches!(error, Some(EINVAL | EOVERFLOW)), "{error:?}");
    assert_eq!(client.ask(READ, 0, 512), Some(0));
    target.survives();
}

/// Defence: crates/nbd/src/rules.rs, requests lie inside of the export.
#[test]
fn reads_past_the_end() {
    let target = Target::new();
    let mut client = Client::attached(&target.device());
    let size = SIZE as u64;
    for (offset, length) in [
        (size, 1),
        (size - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 511, 1024),
        (1 << 63, 512),
    ] {
        assert_eq!(
            client.ask(READ, offset, length),
            Some(EINVAL),
            "{offset} {length}"
        );
    }
    target.survives();
}

/// Defence: crates/nbd/src/rules.rs, nothing is written to what is read-only.
#[test]
fn a_write_to_a_read_only_device() {
    let target = Target::new();
    let mut client = Client::attached(&target.device());
    client.send(&[request(WRITE, 7, 0, 512), vec![0xee; 512]].concat());
    let reply = client.take(16).unwrap();
    assert_eq!(reply[4..8], EPERM.to_be_bytes());
    assert_eq!(client.ask(TRIM, 0, 512), Some(EPERM));
    target.survives();
}

/// Defence: crates/nbd/src/server/transmission.rs: what is written in vain is skipped, not kept.
#[test]
fn a_write_of_4_gib() {
    let target = Target::new();
    let before = target.arena.memory();
    let mut client = Client::attached(&target.device());
    client.send(&request(WRITE, 7, 0, u32::MAX));
    let zeros = vec![0; 1 << 20];
    for _ in 0..128 {
        if !client.send(&zeros) {
            break;
        }
    }
    assert!(target.arena.memory() < before + (64 << 20));
    target.survives();
}

/// Defence: crates/nbd-proxy/src/device/client.rs, `leaving`.
#[test]
fn a_goodbye_in_the_middle_of_requests() {
    let target = Target::new();
    for _ in 0..20 {
        let mut client = Client::attached(&target.device());
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
    target.survives();
}

/// Defence: crates/nbd-proxy/src/device/client.rs, each client has a task of its own.
#[test]
fn half_a_request_and_then_silence() {
    let target = Target::new();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::attached(&target.device())).collect();
    for (count, client) in clients.iter_mut().enumerate() {
        client.send(&request(READ, 7, 0, 512)[..3 * count + 1]);
    }
    target.survives();
}

/// Defence: crates/nbd-proxy/src/device/client.rs, `MAX_BYTES` and `MAX_REQUESTS`.
#[test]
fn a_client_that_asks_and_never_reads() {
    let target = Target::new();
    let before = target.arena.memory();
    let mut client = Client::attached(&target.device());
    client
        .0
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let requests = request(READ, 7, 0, 1 << 20).repeat(1000);
    let blocked = (0..100).find_map(|_| client.0.write_all(&requests).err());
    assert!(blocked.is_some(), "everything is taken");
    let memory = target.arena.memory();
    assert!(memory < before + (96 << 20), "{memory} after {before}");
    target.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket.rs, `MAX_CLIENTS`.
#[test]
fn a_thousand_connections() {
    let target = Target::new();
    let clients: Vec<UnixStream> = (0..1000)
        .map(|_| UnixStream::connect(target.device()).unwrap())
        .collect();
    assert!(target.arena.memory() < 128 << 20);
    drop(clients);
    wait_for("a place for a new client", || {
        let mut stream = UnixStream::connect(target.device()).unwrap();
        let mut greeting = [0; 18];
        std::io::Read::read_exact(&mut stream, &mut greeting).ok()
    });
    target.survives();
}

/// Defence: the same; a client that has gone leaves nothing behind.
#[test]
fn a_storm_of_connections_that_come_and_go() {
    let target = Target::new();
    for round in 0..1000 {
        let mut stream = UnixStream::connect(target.device()).unwrap();
        if round % 2 == 0 {
            let _ = stream.write_all(&3_u32.to_be_bytes());
        }
    }
    wait_for("the last of them to go", || {
        let users = target.arena.server.session()["users"]
            .as_array()
            .map_or(0, Vec::len);
        (users <= 1).then_some(())
    });
    target.survives();
}
