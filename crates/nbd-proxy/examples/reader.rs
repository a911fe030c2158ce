//! Reads NBD devices in a row, over and over, as fast as they give, into memory that it uses again and again: readers that
//! each keep megabytes would take the processor's caches from what `bench/` measures.
//!
//! `reader SECONDS SOCKET…` has 8 requests of 256 KiB on their way to each Unix socket, on as many threads as there are
//! processors. It prints how many bytes a second came from each, a line for each, without the first second.

use std::{
    cell::RefCell,
    error::Error,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use nbd::{
    Command,
    client::{Handshake, HandshakeOptions, ReplyEvent, Transmission},
    wire::CommandFlags,
};
use tokio::{runtime::Builder, task::JoinSet};

/// How many requests are on their way to each device.
const DEPTH: u64 = 8;
/// How long each is, in bytes.
const LENGTH: u32 = 256 << 10;
/// How much is taken from a socket at a time, in bytes.
const ROOM: usize = 64 << 10;
/// How long everything runs before it counts.
const WARM_UP: Duration = Duration::from_secs(1);

type Failure = Box<dyn Error + Send + Sync>;

thread_local! {
    /// What comes, from whichever device.
    static INPUT: RefCell<BytesMut> = RefCell::default();
}

/// Nothing more is to be asked.
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// A device, and what is asked of it next.
struct Device {
    stream: UnixStream,
    transmission: Transmission,
    size: u64,
    asked: u64,
    answered: u64,
    count: Arc<AtomicU64>,
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let seconds = words.next().ok_or("for how many SECONDS?")?.parse()?;
    let devices = words
        .map(|path| connect(&path))
        .collect::<Result<Vec<_>, _>>()?;
    let counts: Vec<_> = devices
        .iter()
        .map(|device| Arc::clone(&device.count))
        .collect();
    let threads = thread::available_parallelism()?.get();
    let mut shares: Vec<_> = (0..threads).map(|_| Vec::new()).collect();
    for (number, device) in devices.into_iter().enumerate() {
        shares[number % threads].push(device);
    }
    let running: Vec<_> = (shares.into_iter())
        .map(|share| thread::spawn(move || read_all(share)))
        .collect();
    thread::sleep(WARM_UP);
    let start = Instant::now();
    let read = || {
        counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect::<Vec<_>>()
    };
    let before = read();
    thread::sleep(Duration::from_secs(seconds));
    let (after, took) = (read(), start.elapsed());
    ENOUGH.store(true, Ordering::Relaxed);
    for thread in running {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    for (before, after) in before.into_iter().zip(after) {
        println!(
            "{}",
            u128::from(after - before) * 1_000_000_000 / took.as_nanos()
        );
    }
    Ok(())
}

fn connect(path: &str) -> Result<Device, Failure> {
    let mut stream = UnixStream::connect(path)?;
    let mut handshake = Handshake::new(HandshakeOptions::default());
    let (export, transmission) = loop {
        while let Some(output) = handshake.poll_output() {
            stream.write_all(&output)?;
        }
        if let Some(done) = handshake.finish() {
            break done;
        }
        let mut input = BytesMut::zeroed(ROOM);
        let count = stream.read(&mut input)?;
        input.truncate(count);
        handshake.handle_input(input.freeze())?;
    };
    if export.size < LENGTH.into() {
        return Err(format!("{path} has fewer than {LENGTH} bytes").into());
    }
    stream.set_nonblocking(true)?;
    Ok(Device {
        stream,
        transmission,
        size: export.size,
        asked: 0,
        answered: 0,
        count: Arc::default(),
    })
}

fn read_all(devices: Vec<Device>) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut reading: JoinSet<_> = devices.into_iter().map(read_one).collect();
        while let Some(ended) = reading.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn read_one(mut device: Device) -> Result<(), Failure> {
    let stream = tokio::net::UnixStream::from_std(device.stream.try_clone()?)?;
    let mut requests = Vec::new();
    for _ in 0..DEPTH {
        device.ask(&mut requests)?;
    }
    loop {
        if !requests.is_empty() {
            stream.writable().await?;
            match stream.try_write(&requests) {
                Ok(count) => drop(requests.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if device.asked == device.answered {
            let mut farewell = Vec::new();
            device.transmission.disconnect(&mut farewell);
            device.stream.write_all(&farewell.concat())?;
            return Ok(());
        }
        stream.readable().await?;
        INPUT.with_borrow_mut(|input| device.take(&stream, input, &mut requests))?;
    }
}

impl Device {
    /// Appends the next request.
    fn ask(&mut self, requests: &mut Vec<u8>) -> Result<(), Failure> {
        let places = self.size / u64::from(LENGTH);
        let offset = self.asked % places * u64::from(LENGTH);
        let command = Command::Read {
            offset,
            length: LENGTH,
        };
        let mut pieces = Vec::new();
        let flags = CommandFlags::empty();
        self.transmission
            .request(self.asked, flags, &command, &mut pieces)?;
        pieces
            .iter()
            .for_each(|piece| requests.extend_from_slice(piece));
        self.asked += 1;
        Ok(())
    }

    /// Takes what has come, and asks for as much as was answered.
    fn take(
        &mut self,
        stream: &tokio::net::UnixStream,
        input: &mut BytesMut,
        requests: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        input.reserve(ROOM);
        match stream.try_read_buf(input) {
            Ok(0) => return Err("a device is gone".into()),
            Ok(_) => self.transmission.handle_input(input.split().freeze()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(event) = self.transmission.poll_reply()? {
            match event {
                ReplyEvent::Data { data, .. } => {
                    self.count.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                ReplyEvent::Done { result, .. } => {
                    result.map_err(|failure| failure.to_string())?;
                    self.answered += 1;
                    if !ENOUGH.load(Ordering::Relaxed) {
                        self.ask(requests)?;
                    }
                }
                ReplyEvent::Hole { .. } | ReplyEvent::BlockStatus { .. } => {}
            }
        }
        Ok(())
    }
}
