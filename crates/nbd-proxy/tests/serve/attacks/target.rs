//! What hostile clients attack: a socket device at each of its doors, and another client of it.

use std::{path::Path, thread};

use super::{
    arena::{Arena, LENGTH, PLACE, SIZE, expected, image},
    client::{Client, Door, READ, request},
    page::{Kind, Offer, Page, simple},
};
use crate::{certificates::Authority, harness::wait_for};

/// A kind of door.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    Unix,
    Tcp,
    Tls,
}

impl At {
    pub(super) const ALL: [Self; 3] = [Self::Unix, Self::Tcp, Self::Tls];
}

/// A session whose page is honest, and another client of its device.
pub(super) struct Target {
    pub(super) arena: Arena,
    pub(super) door: Door,
    friend: Client,
}

impl Target {
    /// With further members of the configuration.
    pub(super) fn at(at: At, members: &str) -> Self {
        Self::of(at, members, image(SIZE).len() as u64, |page| {
            page.serve(&image(SIZE));
        })
    }

    /// With an image of `size` bytes, all of them zeros.
    pub(super) fn of_zeros(at: At, size: u64) -> Self {
        Self::of(at, "\"hold\": 60", size, |mut page| {
            page.stream.set_read_timeout(None).unwrap();
            while let Ok(asked) = page.asked() {
                page.nbd(&simple(asked.cookie, 0, &vec![0; asked.length as usize]));
            }
        })
    }

    /// With an image of `size` bytes that `serve` serves.
    pub(super) fn of(
        at: At,
        members: &str,
        size: u64,
        serve: impl FnOnce(Page) + Send + 'static,
    ) -> Self {
        let authority = Authority::new("machines");
        let prepare = |folder: &Path| {
            authority.write(&folder.join("ca.crt"));
            authority.server().write(folder);
        };
        let device = match at {
            At::Unix => "unix:FOLDER/0.sock",
            At::Tcp | At::Tls => "tcp:127.0.0.1:0",
        };
        let tls = match at {
            At::Tls => {
                r#", "tls": {"certificate": "FOLDER/server.crt", "key": "FOLDER/server.key", "client-ca": "FOLDER/ca.crt"}"#
            }
            At::Unix | At::Tcp => "",
        };
        let arena = Arena::prepared(device, &format!("{members}{tls}"), 30, prepare);
        let mut page = arena.page(Kind::Plain);
        page.negotiate(&Offer {
            size,
            ..Offer::default()
        });
        thread::spawn(move || serve(page));
        let session = arena.server.wait_for_state("attached");
        let device = session["device"].as_str().unwrap();
        let door = match at {
            At::Unix => Door::Unix(device.into()),
            At::Tcp => Door::Tcp(device.parse().unwrap()),
            At::Tls => Door::Tls {
                address: device.parse().unwrap(),
                ca: arena.server.folder.path().join("ca.crt"),
                certificate: authority.client("friend"),
            },
        };
        let friend = Client::attached(&door);
        Self {
            arena,
            door,
            friend,
        }
    }

    /// The device's other client reads on, and so does everybody else.
    pub(super) fn survives(self) {
        let arena = self.read();
        assert_eq!(arena.server.session()["state"], "attached");
        arena.survives();
    }

    /// The friend reads, and goes.
    fn read(mut self) -> Arena {
        self.friend.send(&request(READ, 7, PLACE as u64, LENGTH));
        let reply = self.friend.take(16 + LENGTH as usize).unwrap();
        assert!(reply[16..] == expected(), "wrong bytes");
        self.arena
    }

    /// A new client is welcome, sooner or later.
    pub(super) fn has_room(&self) {
        wait_for("a place for a new client", || {
            let mut client = Client(self.door.dial());
            client.take(18)
        });
    }

    /// Nobody but the friend is a client: when that one has gone as well, the device is free.
    pub(super) fn becomes_free(self) {
        let arena = self.read();
        let ejected = arena.server.post("/api/v1/configurations/0/eject", "{}");
        assert_eq!(ejected.status, 200, "{}", ejected.text());
        arena.survives();
    }
}

/// Does `attack` at each door; whoever else uses the device, or the server, is unharmed.
#[track_caller]
pub(super) fn at_each_door(attack: impl Fn(&Target)) {
    for at in At::ALL {
        let target = Target::at(at, "\"hold\": 60");
        attack(&target);
        target.survives();
    }
}
