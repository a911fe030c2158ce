//! One configuration of a running server, and the session that is attached to it.

use std::{path::PathBuf, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{OwnedMutexGuard, watch},
};

use super::{
    publish::json,
    room::{Room, Seated},
};
use crate::{
    attachment::{Adoption, Attachment, EjectError, Ejected, Outcome, Phase, Settings, Status},
    audit::Audit,
    claim::{Claim, ClaimError},
    config::{Config, Configuration, Right},
    link::{Link, Peer},
    record, report,
    secret::random_hex,
    serve::{
        api::{ConfigurationView, SessionView},
        refusal::Refusal,
    },
};

/// Who is in a slot, and what came of those before. One value, so that nothing is counted twice or not at all.
#[derive(Clone, Default)]
pub(super) struct Occupancy {
    pub(super) occupant: Option<Occupant>,
    past: Totals,
}

/// The session in a slot.
#[derive(Clone)]
pub(super) struct Occupant {
    pub(super) attachment: Attachment,
    /// Who began it.
    first: Peer,
    /// Where it runs.
    runtime: Handle,
}

impl Occupant {
    /// Its status, which names its peer from the first moment on, not only once its task has seen the first link.
    fn status(&self) -> Status {
        let mut status = self.attachment.status().borrow().clone();
        if status.peer == Peer::default() {
            status.peer = self.first.clone();
        }
        status
    }
}

/// Sums over the sessions that are over.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::serve) struct Totals {
    /// Sessions that ended in order.
    pub(in crate::serve) in_order: u64,
    /// Sessions that failed.
    pub(in crate::serve) failed: u64,
    /// Bytes that the machine has read.
    pub(in crate::serve) bytes_read: u64,
    /// Requests that the machine has made.
    pub(in crate::serve) requests: u64,
}

impl Totals {
    fn with(self, status: &Status) -> Self {
        Self {
            bytes_read: self.bytes_read + status.bytes_read,
            requests: self.requests + status.requests,
            ..self
        }
    }
}

/// A configuration, and the session that is attached to it.
pub(in crate::serve) struct Slot {
    config: Arc<Config>,
    index: usize,
    runtime_dir: PathBuf,
    audit: Audit,
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    pub(super) occupancy: watch::Sender<Occupancy>,
    /// The JSON of [`Slot::view`], as it was told last.
    pub(super) told: watch::Sender<String>,
}

impl Slot {
    pub(super) fn new(
        config: Arc<Config>,
        index: usize,
        runtime_dir: PathBuf,
        audit: Audit,
    ) -> Self {
        let slot = Self {
            config,
            index,
            runtime_dir,
            audit,
            gate: Arc::default(),
            occupancy: watch::Sender::default(),
            told: watch::Sender::default(),
        };
        slot.told.send_replace(json(&slot.view()));
        slot
    }

    /// What the file says.
    pub(in crate::serve) fn configuration(&self) -> &Configuration {
        &self.config.configurations[self.index]
    }

    /// Which one it is, from 0 on.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Whether this user may.
    pub(in crate::serve) fn permits(&self, user: &str, right: Right) -> bool {
        self.configuration().allow.permits(user, right)
    }

    /// Configuration and session, now.
    pub(in crate::serve) fn view(&self) -> ConfigurationView {
        let configuration = self.configuration();
        ConfigurationView {
            name: configuration.name.clone(),
            default: configuration.default,
            device: configuration.device.to_string(),
            media: configuration.media.as_str().to_owned(),
            metadata: configuration.metadata.clone(),
            may: Vec::new(),
            session: self
                .occupancy
                .borrow()
                .occupant
                .as_ref()
                .and_then(|occupant| SessionView::of(&occupant.status())),
        }
    }

    /// What all sessions did, the present one's bytes and requests included.
    pub(in crate::serve) fn totals(&self) -> Totals {
        let Occupancy { occupant, past } = self.occupancy.borrow().clone();
        occupant.map_or(past, |occupant| {
            past.with(&occupant.attachment.status().borrow())
        })
    }

    /// The JSON of [`Slot::view`]: on change, and at most once a second where only counters moved.
    pub(in crate::serve) fn changes(&self) -> watch::Receiver<String> {
        self.told.subscribe()
    }

    /// Detaches. An empty slot is as good as ejected.
    pub(in crate::serve) async fn eject(&self, force: bool) -> Result<Ejected, EjectError> {
        let Some(attachment) = self.attachment() else {
            return Ok(Ejected::Free);
        };
        let ejected = attachment.eject(force).await;
        if ejected == Ok(Ejected::Free) {
            self.vacated().await;
        }
        ejected
    }

    pub(super) fn attachment(&self) -> Option<Attachment> {
        self.occupancy
            .borrow()
            .occupant
            .as_ref()
            .map(|occupant| occupant.attachment.clone())
    }

    /// Where its session runs, if there is one.
    pub(super) fn runtime(&self) -> Option<Handle> {
        let occupancy = self.occupancy.borrow();
        let occupant = occupancy.occupant.as_ref();
        occupant.map(|occupant| occupant.runtime.clone())
    }

    async fn vacated(&self) {
        // Fails only when the sender is gone, and that is ours.
        let _ = self
            .occupancy
            .subscribe()
            .wait_for(|occupancy| occupancy.occupant.is_none())
            .await;
    }

    /// Who is there, and not on the way out of the door.
    pub(super) async fn live_occupant(&self) -> Option<Occupant> {
        let occupant = self.occupancy.borrow().occupant.clone()?;
        if occupant.attachment.status().borrow().phase == Phase::Ended {
            self.vacated().await;
            return None;
        }
        Some(occupant)
    }

    fn require(&self, right: Right, peer: &Peer) -> Result<(), Refusal> {
        match self.permits(&peer.user, right) {
            true => Ok(()),
            false => {
                let configuration = self.configuration();
                Err(Refusal::not_permitted(&peer.user, right, configuration))
            }
        }
    }

    /// The rules of the contract's "Links".
    pub(super) fn join(
        &self,
        occupant: &Occupant,
        takeover: bool,
        link: Link,
    ) -> Result<(), Refusal> {
        let status = occupant.status();
        let same_user = status.peer.user == link.peer.user;
        let same_session = link.peer.session.is_some() && status.peer.session == link.peer.session;
        match status.phase {
            Phase::Draining | Phase::Ended => return Err(Refusal::draining(&status)),
            _ if !same_user => return Err(Refusal::in_use(&status, same_user)),
            _ => self.require(Right::Resume, &link.peer)?,
        }
        match status.phase {
            _ if same_session => occupant.attachment.link(link),
            // Another link may be on its way to resume it: that one is not to fail because of this one.
            Phase::Held { .. } => occupant.attachment.challenge(link),
            _ if status.alone => occupant.attachment.challenge(link),
            _ if takeover && status.image.is_some() => occupant.attachment.challenge(link),
            _ => return Err(Refusal::in_use(&status, same_user)),
        }
        Ok(())
    }

    /// Goes on with the session that an earlier process left, or cleans up after it. Links wait meanwhile.
    pub(super) async fn recover(self: Arc<Self>, room: Room, _gate: OwnedMutexGuard<()>) {
        if let Err(error) = self.adopt_or_clean_up(&room).await {
            let name = &self.configuration().name;
            report::warning(format_args!("configuration {name:?}: {error}"));
        }
    }

    async fn adopt_or_clean_up(self: &Arc<Self>, room: &Room) -> Result<(), ClaimError> {
        let configuration = self.configuration();
        let name = &configuration.name;
        let claim = Claim::lock(configuration, &self.runtime_dir).await?;
        match self.prepare_adoption().await {
            Ok(Some(adoption)) => {
                let first = adoption.peer().clone();
                let mut settings = self.settings();
                // A session that was there already goes on, also where fewer are allowed now.
                let seated = room.seat(&mut settings, room.place().ok());
                let attachment = Attachment::adopt(settings, claim, adoption);
                self.admit(attachment, first, seated);
                return Ok(());
            }
            Ok(None) => {}
            Err(error) => report::warning(format_args!(
                "configuration {name:?}: the session of an earlier nbd-proxy can't go on: {error}"
            )),
        }
        claim.clean_up(configuration, &self.runtime_dir).await
    }

    async fn prepare_adoption(&self) -> anyhow::Result<Option<Adoption>> {
        let name = &self.configuration().name;
        let Some(record) = record::read(&self.runtime_dir, name)? else {
            return Ok(None);
        };
        Ok(Some(Adoption::prepare(&self.settings(), record).await?))
    }

    fn settings(&self) -> Settings {
        let runtime_dir = self.runtime_dir.clone();
        Settings::for_serve(
            &self.config,
            self.configuration(),
            runtime_dir,
            self.audit.clone(),
        )
    }

    pub(super) async fn begin(self: &Arc<Self>, link: Link, room: &Room) -> Result<(), Refusal> {
        let place = room.place()?;
        self.require(Right::Attach, &link.peer)?;
        let claim = Claim::acquire(self.configuration(), &self.runtime_dir).await?;
        let id = match &link.peer.session {
            Some(id) => id.clone(),
            None => random_hex::<16>().map_err(|error| Refusal::failed(&error))?,
        };
        let mut settings = self.settings();
        let seated = room.seat(&mut settings, Some(place));
        let attachment = Attachment::start(settings, claim, id);
        let first = link.peer.clone();
        attachment.link(link);
        self.admit(attachment, first, seated);
        Ok(())
    }

    fn admit(self: &Arc<Self>, attachment: Attachment, first: Peer, seated: Seated) {
        let occupant = Occupant {
            attachment: attachment.clone(),
            first,
            runtime: Handle::current(),
        };
        self.occupancy
            .send_modify(|occupancy| occupancy.occupant = Some(occupant));
        tokio::spawn(Arc::clone(self).clear_after(attachment, seated));
    }

    /// Empties the slot once its session is gone.
    async fn clear_after(self: Arc<Self>, attachment: Attachment, seated: Seated) {
        let outcome = attachment.ended().await;
        // Before anybody can see that it is gone.
        drop(seated);
        self.occupancy.send_modify(|occupancy| {
            occupancy.occupant = None;
            occupancy.past = occupancy.past.with(&attachment.status().borrow());
            match outcome {
                Outcome::InOrder(_) => occupancy.past.in_order += 1,
                Outcome::Failed(_) => occupancy.past.failed += 1,
            }
        });
    }
}
