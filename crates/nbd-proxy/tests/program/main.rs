//! The program as others run it: in a place of its own, with a page that serves an image and a machine that reads it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod command_line;
mod machine;
mod page;
mod place;
mod socket;
mod stdio;

use std::{
    io::{self, Read},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use machine::Machine;
use page::{Behaviour, Page};
use place::{Place, Proxy};

/// No test waits longer for anything, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something.
fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = condition() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// An image whose every 8 bytes tell where they are.
fn image(length: usize) -> Bytes {
    let mut image: Vec<u8> = (0..length.div_ceil(8) as u64)
        .flat_map(|word| (word * 8).to_be_bytes())
        .collect();
    image.truncate(length);
    image.into()
}

/// What one read gives; the end of the stream is an error.
///
/// A read with a time limit is interrupted where the whole machine is stopped and goes on (signal(7)).
fn read_some(from: &mut impl Read) -> io::Result<Bytes> {
    let mut room = vec![0; 64 << 10];
    loop {
        match from.read(&mut room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                room.truncate(count);
                return Ok(room.into());
            }
        }
    }
}
