//! Where attacks take place: a server with a victim and a neighbour.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::page::{Kind, Offer, Page};
use crate::{
    disk::Disk,
    harness::{Server, wait_for},
};

/// The image that is attacked, and its reader's place in it: away from the blocks that a session reads for itself.
pub(super) const SIZE: usize = 1 << 20;
pub(super) const PLACE: usize = 1 << 19;
pub(super) const LENGTH: u32 = 4096;
/// The most memory that the server may have in use after an attack, in bytes.
pub(super) const MEMORY: u64 = 256 << 20;
/// The neighbour's image, in bytes.
const NEIGHBOUR_SIZE: usize = 100_000;

/// The bytes of an image.
pub(super) fn image(size: usize) -> Arc<[u8]> {
    (0..size)
        .map(|at| u8::try_from((at >> 9) % 251).unwrap())
        .collect()
}

/// A server whose configuration `"lab 2"` is somebody else's and in use all the time.
pub(super) struct Arena {
    // Ends before the server does.
    neighbour: Neighbour,
    pub(super) server: Server,
}

impl Arena {
    /// Nobody has to hurry.
    pub(super) fn new() -> Self {
        Self::with("\"hold\": 60", 30)
    }

    /// Members of configuration `"0"`, and how long a request may stay unanswered, in seconds.
    pub(super) fn with(members: &str, timeout: u32) -> Self {
        Self::with_device("unix:FOLDER/0.sock", members, timeout)
    }

    /// The same with another device in configuration `"0"`.
    pub(super) fn with_device(device: &str, members: &str, timeout: u32) -> Self {
        Self::prepared(device, members, timeout, |_| {})
    }

    /// The same, where files are needed that `prepare` writes into the server's folder.
    pub(super) fn prepared(
        device: &str,
        members: &str,
        timeout: u32,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let config = format!(
            r#"{{"timeout": {timeout}, "configurations": {{
                "0": {{"device": "{device}", "default": true, "state-hook": "FOLDER/hook", {members}}},
                "lab 2": {{"device": "unix:FOLDER/lab.sock"}}
            }}}}"#
        );
        let config = config.replace("FOLDER", &folder.path().display().to_string());
        fs::write(folder.path().join("config.json"), config).unwrap();
        let server = Server::again(folder);
        let neighbour = Neighbour::start(&server);
        Self { neighbour, server }
    }

    /// A page on configuration `"0"`.
    pub(super) fn page(&self, kind: Kind) -> Page {
        Page::open(&self.server, &kind.path())
    }

    /// A page whose image is attached already.
    pub(super) fn attached(&self, kind: Kind, structured: bool) -> Page {
        let mut page = self.page(kind);
        page.announce(SIZE as u64);
        page.negotiate(&Offer {
            structured,
            ..Offer::default()
        });
        page.serve_until(&image(SIZE), || self.server.device().exists());
        page.serve_the_edges(&image(SIZE));
        page
    }

    /// A page that resumes the session with the same image.
    pub(super) fn resumed(&self, kind: Kind) -> Page {
        let mut page = self.page(kind);
        page.announce(SIZE as u64);
        page.negotiate(&Offer::default());
        page.serve_until(&image(SIZE), || {
            self.server.session()["state"] == "attached"
        });
        page
    }

    /// Somebody reads at [`PLACE`] while `page` serves; gives what the page is asked for it, and the reader.
    pub(super) fn reader(&self) -> Reader {
        Reader::start(self.server.device())
    }

    /// An honest page resumes the session, and the waiting reader gets the right bytes.
    pub(super) fn resumed_by_an_honest_page(&self, kind: Kind, reader: Reader) {
        let mut page = self.page(kind);
        page.announce(SIZE as u64);
        page.negotiate(&Offer::default());
        page.serve_until(&image(SIZE), || reader.is_done());
        assert!(reader.bytes() == Ok(expected()), "wrong bytes");
    }

    /// Nothing that somebody else relies on was harmed: the other session goes on, and the process lives, is calm, and
    /// in bounds.
    pub(super) fn survives(mut self) {
        self.neighbour.reads_on();
        assert!(self.server.process.is_running());
        assert_eq!(self.server.get("/healthz").status, 200);
        let memory = memory(&self.server);
        assert!(memory < MEMORY, "{memory} bytes in use");
        self.neighbour.pause();
        self.is_calm();
    }

    /// Stops the server; what it has said on standard error.
    pub(super) fn stopped(self) -> String {
        drop(self.neighbour);
        let Server {
            process, folder, ..
        } = self.server;
        process.signal(rustix::process::Signal::TERM);
        let (_, told) = process.wait();
        drop(folder);
        told
    }

    /// What the process has in memory just now, in bytes.
    pub(super) fn memory(&self) -> u64 {
        memory(&self.server)
    }

    /// Waits until the process uses hardly any time of a processor.
    fn is_calm(&self) {
        let ticks = || {
            let stat = fs::read_to_string(proc(&self.server, "stat")).unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<&str> = fields.split(' ').collect();
            // utime and stime of proc_pid_stat(5), in hundredths of a second.
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        wait_for("a calm process", || {
            let before = ticks();
            thread::sleep(Duration::from_millis(200));
            (ticks() - before <= 5).then_some(())
        });
    }
}

/// What the server's process has in memory just now, in bytes.
pub(super) fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(proc(server, "status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

fn proc(server: &Server, file: &str) -> String {
    format!("/proc/{}/{file}", server.process.id())
}

/// Configuration `"0"` of any server has the image of an honest page; its reader.
pub(super) fn attach(server: &Server) -> Disk {
    let mut page = Page::open(server, &Kind::Plain.path());
    page.negotiate(&Offer::default());
    thread::spawn(move || page.serve(&image(SIZE)));
    let device = server.device();
    wait_for("the device", || {
        UnixStream::connect(&device).is_ok().then_some(())
    });
    Disk::connect(&device)
}

/// What a reader has to get.
pub(super) fn expected() -> Vec<u8> {
    image(SIZE)[PLACE..PLACE + LENGTH as usize].to_vec()
}

/// Reads [`LENGTH`] bytes at [`PLACE`] once.
pub(super) struct Reader(thread::JoinHandle<Result<Vec<u8>, String>>);

impl Reader {
    fn start(device: PathBuf) -> Self {
        Self(thread::spawn(move || {
            let mut disk = Disk::connect(&device);
            disk.read(PLACE as u64, LENGTH)
                .map_err(|failure| failure.to_string())
        }))
    }

    pub(super) fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    pub(super) fn bytes(self) -> Result<Vec<u8>, String> {
        wait_for("the reader", || self.0.is_finished().then_some(()));
        self.0.join().unwrap()
    }
}

/// Another session of the same server, read from all the time.
struct Neighbour {
    rounds: Arc<AtomicU64>,
    paused: Arc<AtomicBool>,
    reading: Option<thread::JoinHandle<()>>,
}

impl Neighbour {
    fn start(server: &Server) -> Self {
        let device = server.folder.path().join("lab.sock");
        let content = image(NEIGHBOUR_SIZE);
        let mut page = Page::open(server, "/nbd/lab%202");
        page.negotiate(&Offer {
            size: NEIGHBOUR_SIZE as u64,
            ..Offer::default()
        });
        let honest = Arc::clone(&content);
        thread::spawn(move || page.serve(&honest));
        wait_for("the neighbour's device", || {
            UnixStream::connect(&device).is_ok().then_some(())
        });
        let (rounds, paused) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, ended) = (Arc::clone(&rounds), Arc::clone(&paused));
        let reading = thread::spawn(move || {
            let mut disk = Disk::connect(&device);
            while !ended.load(Ordering::Relaxed) {
                assert!(disk.read_all().starts_with(&content), "wrong bytes");
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            rounds,
            paused,
            reading: Some(reading),
        }
    }

    fn reads_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_for("the neighbour's reads", || {
            (self.rounds.load(Ordering::Relaxed) >= before + 2).then_some(())
        });
    }

    fn pause(&mut self) {
        self.paused.store(true, Ordering::Relaxed);
        if let Some(reading) = self.reading.take() {
            // Its panic was printed.
            let _ = reading.join();
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.pause();
    }
}
