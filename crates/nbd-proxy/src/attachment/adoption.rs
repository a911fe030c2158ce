//! Going on with a session whose process was killed, or left it to us.

use std::{
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use nbd_session::{DevicePhase, Geometry, RestoreError, Session, Volume};

use super::{
    Attachment, Phase, Settings, Status,
    lifecycle::HookState,
    worker::{Worker, session_config},
};
use crate::{
    audit::Event,
    claim::Claim,
    device::{
        AttachedDevice, DeviceError,
        kernel::{self, Left, Reclaimed},
    },
    link::Peer,
    record::Record,
    report,
};

/// Why a session can't be gone on with. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// For what it is.
    #[error(transparent)]
    Session(#[from] RestoreError),
    /// For what became of its device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A session of another process, whose device we have taken over.
pub(crate) struct Adoption {
    record: Record,
    volume: Volume,
    geometry: Geometry,
    device: Reclaimed,
}

impl Adoption {
    /// Takes over what `record` tells of, where the configuration still wants it so.
    pub(crate) async fn prepare(settings: &Settings, record: Record) -> Result<Self, AdoptError> {
        let snapshot = record.snapshot.clone();
        let session = Session::restore(session_config(settings), Instant::now(), snapshot)?;
        let volume = Volume::new(session);
        let geometry = volume
            .geometry()
            .cloned()
            .ok_or_else(|| RestoreError::Malformed("it has no geometry".into()))?;
        let left = Left {
            spec: settings.device.clone(),
            device: record.device.clone(),
            name: settings.name.clone(),
            session: record.id.clone(),
            size: geometry.size,
            hold: settings.hold,
        };
        let device = kernel::reclaim(left).await?;
        Ok(Self {
            record,
            volume,
            geometry,
            device,
        })
    }

    /// Who serves the image, or did so last.
    pub(crate) fn peer(&self) -> &Peer {
        &self.record.peer
    }

    fn status(&self) -> Status {
        let Record {
            peer,
            since,
            bytes_read,
            requests,
            ..
        } = &self.record;
        Status {
            phase: Phase::Attached,
            image: self.volume.image().cloned(),
            device: Some(self.device.path().into()),
            size: self.geometry.size,
            read_only: self.geometry.read_only,
            peer: peer.clone(),
            since: UNIX_EPOCH
                .checked_add(Duration::from_millis(*since))
                .unwrap_or(UNIX_EPOCH),
            bytes_read: *bytes_read,
            requests: *requests,
            ..Status::default()
        }
    }
}

impl Attachment {
    /// Goes on with a session, which waits for a link. Must be called within the runtime.
    pub(crate) fn adopt(settings: Settings, claim: Claim, adoption: Adoption) -> Self {
        let status = adoption.status();
        report::information(format_args!(
            "configuration {:?}: goes on with {} on {}, which an earlier nbd-proxy left; waits {} s for whoever serves it",
            settings.name,
            status
                .image
                .as_ref()
                .map_or("an image", |image| &image.name),
            adoption.device.path(),
            settings.hold.as_secs(),
        ));
        let Adoption {
            record,
            volume,
            geometry,
            device,
        } = adoption;
        Self::spawn(settings, claim, record.id, volume, status, |worker| {
            worker.go_on(geometry, device, record.hook_users);
        })
    }
}

impl Worker {
    /// Goes on where another process has ended: with the device attached, and `start` done.
    fn go_on(&mut self, geometry: Geometry, device: Reclaimed, hook_users: Vec<String>) {
        let now = Instant::now();
        let device = device.serve(&self.attach_request(geometry));
        self.life.ready = true;
        self.life.device = Some(Arc::new(AttachedDevice::Kernel(device)));
        self.life.hook_users = hook_users;
        self.life.hook = if self.claim.owes_stop() {
            HookState::Begun
        } else {
            HookState::Settled
        };
        self.audit(Event::Restored);
        self.show_device(now, DevicePhase::Attached);
        self.start_keeper(now);
    }
}
