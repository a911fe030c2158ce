//! Answers the kernel for one file: requests out of `/dev/fuse` to the volume, replies back without a copy.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
};

use nbd::{
    Command, Payload, Reply,
    wire::{CommandFlags, Errno},
};
use nbd_kernel::fuse::{Action, FileServer, REQUEST_BUFFER, reply_header};
use rustix::io::Errno as SystemError;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use super::super::{Completion, DeviceEvent, DeviceRequest, ReplySlot};

/// A file that was unmounted shows as an error only.
const AWAITED: Interest = Interest::READABLE.add(Interest::ERROR);
/// Requests taken from the kernel before replies have their turn.
const BATCH: usize = 32;
/// How many pieces one write takes (`UIO_MAXIOV`), less one for the header.
const MAX_PIECES: usize = 1023;

/// One connection to the kernel. Dropping it ends the file.
pub(super) struct Server {
    device: AsyncFd<OwnedFd>,
    file: FileServer,
    requests: mpsc::Sender<DeviceRequest>,
    completed: mpsc::UnboundedSender<Completion>,
    completions: mpsc::UnboundedReceiver<Completion>,
}

/// Why the connection is over.
enum End {
    /// Somebody unmounted the file.
    Unmounted,
    /// There is no volume any more.
    NoVolume,
    Failed(String),
}

impl From<SystemError> for End {
    fn from(error: SystemError) -> Self {
        match error {
            SystemError::NODEV => End::Unmounted,
            error => End::Failed(format!("/dev/fuse: {}", io::Error::from(error))),
        }
    }
}

impl Server {
    /// `descriptor` is that of a fresh mount, non-blocking.
    pub(super) fn new(
        descriptor: OwnedFd,
        file: FileServer,
        requests: mpsc::Sender<DeviceRequest>,
    ) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd's may not"
        )]
        let device = AsyncFd::with_interest(descriptor, AWAITED)?;
        let (completed, completions) = mpsc::unbounded_channel();
        Ok(Server {
            device,
            file,
            requests,
            completed,
            completions,
        })
    }

    /// Answers until the file is unmounted. What the end means to the session.
    pub(super) async fn run(mut self) -> DeviceEvent {
        loop {
            if let Err(end) = self.step().await {
                return match end {
                    End::Unmounted => DeviceEvent::Disconnected,
                    End::NoVolume => DeviceEvent::Failed("the volume is gone".into()),
                    End::Failed(cause) => DeviceEvent::Failed(cause),
                };
            }
        }
    }

    async fn step(&mut self) -> Result<(), End> {
        tokio::select! {
            Some((unique, result)) = self.completions.recv() => self.complete(unique, result),
            ready = self.device.ready(AWAITED) => {
                let mut ready = ready.map_err(|error| End::Failed(format!("/dev/fuse: {error}")))?;
                let mut actions = Vec::new();
                let taken = take_requests(self.device.get_ref(), &self.file, &mut actions);
                if !taken? {
                    ready.clear_ready();
                }
                for action in actions {
                    self.carry_out(action).await?;
                }
                Ok(())
            }
        }
    }

    async fn carry_out(&self, action: Action) -> Result<(), End> {
        match action {
            Action::Reply(bytes) => self.write(&[IoSlice::new(&bytes)]).map_err(End::from),
            Action::None => Ok(()),
            Action::Unmounted => Err(End::Unmounted),
            Action::Read {
                unique,
                offset,
                length,
            } => {
                let command = Command::Read { offset, length };
                let reply = ReplySlot::new(unique, self.completed.clone());
                let request = DeviceRequest {
                    flags: CommandFlags::empty(),
                    command,
                    reply,
                };
                self.requests.send(request).await.map_err(|_| End::NoVolume)
            }
        }
    }

    fn complete(&self, unique: u64, result: Result<Reply, Errno>) -> Result<(), End> {
        let errno = match result {
            Ok(Reply::Data(data)) => match self.write_data(unique, &data) {
                Ok(()) => return Ok(()),
                Err(SystemError::NODEV) => return Err(End::Unmounted),
                // A reply that the kernel does not take would leave its reader waiting.
                Err(_) => Errno::EIO,
            },
            Ok(_) => Errno::EIO,
            Err(errno) => errno,
        };
        // The numbers of NBD are those of Linux.
        let number = i32::try_from(errno.to_wire()).unwrap_or(5);
        self.write(&[IoSlice::new(&reply_header(unique, number, 0))])
            .map_err(End::from)
    }

    fn write_data(&self, unique: u64, data: &Payload) -> Result<(), SystemError> {
        let length = u32::try_from(data.len()).map_err(|_| SystemError::INVAL)?;
        let header = reply_header(unique, 0, length);
        if data.parts().len() > MAX_PIECES {
            return self.write(&[IoSlice::new(&header), IoSlice::new(&data.to_bytes())]);
        }
        let mut pieces = Vec::with_capacity(1 + data.parts().len());
        pieces.push(IoSlice::new(&header));
        pieces.extend(data.parts().iter().map(|part| IoSlice::new(part)));
        self.write(&pieces)
    }

    /// Writes one reply; the kernel takes it at once and whole. A request that was given up meanwhile (its reader was
    /// killed) is no error.
    fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), SystemError> {
        match rustix::io::writev(self.device.as_fd(), pieces) {
            Ok(_) | Err(SystemError::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What the kernel asks now, up to a batch; false when it asks nothing more.
fn take_requests(
    device: &OwnedFd,
    file: &FileServer,
    actions: &mut Vec<Action>,
) -> Result<bool, End> {
    let mut buffer = [0; REQUEST_BUFFER];
    for _ in 0..BATCH {
        match rustix::io::read(device, &mut buffer) {
            Ok(length) => actions.push(
                file.handle(&buffer[..length])
                    .map_err(|error| End::Failed(error.to_string()))?,
            ),
            Err(SystemError::AGAIN) => return Ok(false),
            // ENOENT: the request was given up before we read it.
            Err(SystemError::INTR | SystemError::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
