//! A volume in memory, for the tests of devices that the machine really gets.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    time::Duration,
};

use bytes::Bytes;
use nbd::{Command, Payload, Reply, wire::Errno};
use nbd_session::Geometry;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::{AttachMode, AttachRequest, DeviceEvent, DeviceRequest, REQUEST_QUEUE};

/// What the volume's side of a device sees, and the request to attach it.
pub(super) struct Bench {
    pub(super) request: AttachRequest,
    pub(super) events: mpsc::UnboundedReceiver<DeviceEvent>,
    pub(super) image: Vec<u8>,
    /// Once used, requests are kept unanswered.
    silence: Option<oneshot::Sender<()>>,
    runtime_dir: TempDir,
}

impl Bench {
    /// A read-only image of `size` bytes, none of which is 0.
    pub(super) fn new(size: usize) -> Self {
        let image: Vec<u8> = (0..size)
            .map(|at| 1 + u8::try_from((at ^ (at >> 8)) % 255).unwrap())
            .collect();
        let runtime_dir = tempfile::tempdir().unwrap();
        let (requests, inbox) = mpsc::channel(REQUEST_QUEUE);
        let (events, reported) = mpsc::unbounded_channel();
        let (silence, silent) = oneshot::channel();
        tokio::spawn(answer(inbox, image.clone(), silent));
        let geometry = geometry(u64::try_from(image.len()).unwrap());
        let request = AttachRequest {
            name: "0".into(),
            session: "0123456789abcdef".into(),
            geometry,
            hold: Duration::from_secs(60),
            attach: AttachMode::Automatic,
            memory: super::budget::BUDGET,
            requests,
            events,
            runtime_dir: runtime_dir.path().canonicalize().unwrap(),
        };
        Bench {
            request,
            events: reported,
            image,
            silence: Some(silence),
            runtime_dir,
        }
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        self.runtime_dir.path()
    }

    /// The image as a device shows it: padded with zeros to the sector.
    pub(super) fn disk(&self) -> Vec<u8> {
        let mut disk = self.image.clone();
        disk.resize(disk.len().next_multiple_of(512), 0);
        disk
    }

    /// From now on no request is answered: the link is dead.
    pub(super) fn fall_silent(&mut self) {
        self.silence.take();
    }
}

/// Of a read-only image of `size` bytes.
pub(super) fn geometry(size: u64) -> Geometry {
    Geometry {
        image_size: size,
        size: size.next_multiple_of(512),
        read_only: true,
        name: "test.img".into(),
        description: None,
        minimum_block: 1,
        can_flush: false,
        can_fua: false,
        can_trim: false,
        can_write_zeroes: false,
        can_fast_zero: false,
        can_cache: false,
        rotational: false,
    }
}

async fn answer(
    mut inbox: mpsc::Receiver<DeviceRequest>,
    mut image: Vec<u8>,
    mut silent: oneshot::Receiver<()>,
) {
    image.resize(image.len().next_multiple_of(512), 0);
    let mut kept = Vec::new();
    while let Some(DeviceRequest { command, reply, .. }) = inbox.recv().await {
        if silent.try_recv() == Err(oneshot::error::TryRecvError::Closed) {
            kept.push(reply);
            continue;
        }
        reply.answer(match command {
            Command::Read { offset, length } => {
                let start = usize::try_from(offset).unwrap();
                let data = &image[start..start + usize::try_from(length).unwrap()];
                // In pieces, as they come from a link.
                Ok(Reply::Data(
                    data.chunks(5000)
                        .map(Bytes::copy_from_slice)
                        .collect::<Payload>(),
                ))
            }
            _ => Err(Errno::EINVAL),
        });
    }
}

/// A process that has `path` open until it is dropped.
pub(super) struct Opener(Child);

impl Opener {
    pub(super) fn new(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap();
        Opener(
            Process::new("sleep")
                .arg("600")
                .stdin(file)
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What another process reads from `path`, none of it from a cache of ours; None where that fails.
pub(super) async fn read_by_other(path: impl Into<PathBuf>) -> Option<Vec<u8>> {
    let path = path.into();
    let output = tokio::process::Command::new("cat")
        .arg(path)
        .stderr(Stdio::null())
        .output()
        .await
        .unwrap();
    output.status.success().then_some(output.stdout)
}

/// Devices are root's. A test that can't have one says so.
pub(super) fn have_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "not run: it takes root");
    }
    root
}
