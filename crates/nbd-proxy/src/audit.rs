//! The audit trail: who attached what, from where, when, and how it ended; one JSON object per event.
//!
//! Whoever has something to tell has an [`Audit`] and never waits for it: events go through a bounded queue to a thread
//! that writes. What finds no room there, or cannot be written, is counted, and the trail itself tells how much it
//! lacks.

mod event;
#[cfg(feature = "serve")]
mod file;
#[cfg(feature = "serve")]
mod hash;
#[cfg(feature = "serve")]
mod journal;
mod throttles;
#[cfg(feature = "serve")]
mod writer;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};
#[cfg(feature = "serve")]
use std::{io, sync::mpsc::Receiver, thread};

#[cfg(feature = "serve")]
use anyhow::Context as _;

#[cfg(feature = "serve")]
pub(crate) use event::Who;
pub(crate) use event::{Event, Image, Session};
#[cfg(feature = "serve")]
pub(crate) use journal::has_standard_error as journal_has_standard_error;
#[cfg(feature = "serve")]
pub(crate) use writer::rfc3339;

use crate::keep::Hasher;
#[cfg(feature = "serve")]
use crate::{
    config::{Destination, ServeConfig},
    report,
};
use throttles::Throttles;

/// How many events may wait to be written. An event takes less than 10 KiB.
const QUEUE: usize = 1024;
/// How long the end of the program waits for the last events to be written.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where events go. Clones are the same trail.
#[derive(Clone, Default)]
pub(crate) struct Audit(Option<Arc<Trail>>);

struct Trail {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    throttles: Throttles,
    /// Makes what hashes a kept copy.
    hasher: fn() -> Box<dyn Hasher>,
}

enum Message {
    Event(SystemTime, Box<Event>),
    /// Answered once everything before it has been written.
    Flush(SyncSender<()>),
}

/// The trail that the section `serve` asks for. Where it says nothing, events go to the journal if standard error goes
/// there, and else nowhere: on a terminal there is somebody who sees the messages for people.
#[cfg(feature = "serve")]
pub(crate) fn of(config: &ServeConfig) -> anyhow::Result<Audit> {
    match &config.audit {
        Some(destination) => Audit::start(destination).with_context(|| {
            format!(
                "there can be no audit trail in {destination}; make it a place that can be written to, or choose \
                 another with \"audit\" in \"serve\" of the configuration"
            )
        }),
        None if journal::has_standard_error() => {
            Ok(Audit::start(&Destination::Journal).unwrap_or_else(|error| {
                report::warning(format_args!(
                    "there is no audit trail: journald can't be reached: {error}; choose another place with \"audit\" \
                     in \"serve\", or \"off\""
                ));
                Audit::off()
            }))
        }
        None => Ok(Audit::off()),
    }
}

impl Audit {
    /// No trail.
    pub(crate) fn off() -> Self {
        Self::default()
    }

    /// A trail to `destination`, which must be there now; that it fails later stops nothing.
    #[cfg(feature = "serve")]
    pub(crate) fn start(destination: &Destination) -> io::Result<Self> {
        match destination {
            Destination::Off => Ok(Self::off()),
            Destination::StandardError => Self::with(writer::StandardError),
            Destination::Journal => Self::with(journal::Journal::open(journal::SOCKET.as_ref())?),
            Destination::File(path) => Self::with(file::AuditFile::open(path)?),
        }
    }

    #[cfg(feature = "serve")]
    fn with(sink: impl writer::Sink + 'static) -> io::Result<Self> {
        let (queue, inbox) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = writer::Writer::new(sink, Arc::clone(&lost));
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || work(&inbox, writer))?;
        Ok(Self(Some(Arc::new(Trail {
            queue,
            lost,
            throttles: Throttles::new(),
            hasher: hash::sha256,
        }))))
    }

    /// Tells of an event that has just happened. Never waits.
    pub(crate) fn tell(&self, event: Event) {
        let Some(trail) = &self.0 else {
            return;
        };
        if let Some(cause) = event.cause() {
            match trail.throttles.admit(cause, Instant::now()) {
                Some(0) => {}
                Some(count) => trail.tell(Event::EventsOmitted {
                    user: cause.user(),
                    count,
                }),
                None => return,
            }
        }
        trail.tell(event);
    }

    /// What hashes a kept copy, where somebody wants to know.
    pub(crate) fn hasher(&self) -> Option<Box<dyn Hasher>> {
        self.0.as_ref().map(|trail| (trail.hasher)())
    }

    /// How many events were not written.
    pub(crate) fn lost(&self) -> u64 {
        self.0
            .as_ref()
            .map_or(0, |trail| trail.lost.load(Ordering::Relaxed))
    }

    /// Waits a short while until what was told is written. Blocks.
    pub(crate) fn flush(&self) {
        let Some(trail) = &self.0 else {
            return;
        };
        let (done, finished) = sync_channel(1);
        if trail.queue.try_send(Message::Flush(done)).is_ok() {
            // Fails when the time is over: a disk that hangs does not keep the program.
            let _ = finished.recv_timeout(FAREWELL);
        }
    }
}

impl Trail {
    fn tell(&self, event: Event) {
        let message = Message::Event(SystemTime::now(), Box::new(event));
        if self.queue.try_send(message).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() {
            "Audit(on)"
        } else {
            "Audit(off)"
        })
    }
}

#[cfg(feature = "serve")]
fn work(inbox: &Receiver<Message>, mut writer: writer::Writer<impl writer::Sink>) {
    for message in inbox {
        match message {
            Message::Event(time, event) => writer.write(time, &event),
            // Whoever asked may have given up.
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "serve")]
mod tests;
