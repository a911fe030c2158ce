//! The configurations of a running server: a slot each, with at most one session in it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nbd_session::{EndReason, KeepState};
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};

use super::{
    api::{ConfigurationView, SessionView},
    limits::{Limit, Reached},
    memory::{Memory, Part},
    refusal::Refusal,
};
use crate::{
    attachment::{Adoption, Attachment, EjectError, Ejected, Outcome, Phase, Settings, Status},
    audit::Audit,
    claim::{self, Claim, ClaimError},
    config::{Config, Configuration, Right, ServeLimits},
    link::{Link, Peer},
    record, report,
    secret::random_hex,
};

/// How often a change of nothing but counters is told.
const COUNTERS: Duration = Duration::from_secs(1);

/// All slots.
pub(super) struct Registry {
    slots: Vec<Arc<Slot>>,
    version: watch::Receiver<u64>,
    closed: AtomicBool,
    room: Room,
}

/// What sessions share.
#[derive(Clone)]
struct Room {
    places: Arc<Semaphore>,
    most: usize,
    memory: Arc<Memory>,
}

/// What one session has of it.
struct Seated {
    _place: Option<OwnedSemaphorePermit>,
    _memory: Part,
}

impl Room {
    fn new(limits: &ServeLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.sessions)),
            most: limits.sessions,
            memory: Memory::new(limits.memory, limits.sessions),
        }
    }

    /// A place, if there is one.
    fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Refusal::too_many(Reached {
                limit: Limit::Sessions,
                most: self.most,
            })
        })
    }

    /// Sees to it that a session has no more in memory than there is for it.
    fn seat(&self, settings: &mut Settings, place: Option<OwnedSemaphorePermit>) -> Seated {
        let wanted = settings.limits.memory();
        let memory = self.memory.part(wanted);
        if memory.bytes() < wanted {
            settings.limits = settings.limits.within(memory.bytes());
        }
        Seated {
            _place: place,
            _memory: memory,
        }
    }
}

impl Registry {
    /// A slot for each configuration. R is `runtime_dir`. What an earlier process left of each is seen to at once: there
    /// may be readers who wait. Must be called within the runtime.
    pub(super) fn new(config: &Arc<Config>, runtime_dir: &Path, audit: &Audit) -> Self {
        let (sender, version) = watch::channel(0);
        let sender = Arc::new(sender);
        let room = Room::new(&config.serve.limits);
        let slots = (0..config.configurations.len())
            .map(|index| {
                let slot = Slot::new(
                    Arc::clone(config),
                    index,
                    runtime_dir.to_owned(),
                    audit.clone(),
                );
                let slot = Arc::new(slot);
                tokio::spawn(publish(Arc::clone(&slot), Arc::clone(&sender)));
                if let Ok(gate) = Arc::clone(&slot.gate).try_lock_owned() {
                    tokio::spawn(Arc::clone(&slot).recover(room.clone(), gate));
                }
                slot
            })
            .collect();
        let (config, runtime_dir) = (Arc::clone(config), runtime_dir.to_owned());
        tokio::spawn(async move { claim::clean_up_orphans(&config, &runtime_dir).await });
        Self {
            slots,
            version,
            closed: AtomicBool::new(false),
            room,
        }
    }

    /// Those that this user may see, in the configuration file's order.
    pub(super) fn visible(&self, user: &str) -> impl Iterator<Item = &Arc<Slot>> {
        (self.slots.iter()).filter(move |slot| slot.permits(user, Right::Look))
    }

    /// The slot of that name, if this user may see it.
    pub(super) fn find(&self, user: &str, name: &str) -> Option<&Arc<Slot>> {
        self.visible(user)
            .find(|slot| slot.configuration().name == name)
    }

    /// The slot that is taken where none is named, likewise.
    pub(super) fn default(&self, user: &str) -> Option<&Arc<Slot>> {
        self.visible(user).find(|slot| slot.configuration().default)
    }

    /// A sentence for who asked for a configuration that there is not.
    pub(super) fn no_such(&self, user: &str, name: &str) -> String {
        let names: Vec<_> = (self.visible(user))
            .map(|slot| format!("{:?}", slot.configuration().name))
            .collect();
        match &names[..] {
            [] => format!("there is no configuration {name:?}, nor any that {user} may see"),
            names => format!(
                "there is no configuration {name:?}; there is {}",
                names.join(", ")
            ),
        }
    }

    /// Grows after any slot's [`Slot::changes`] has changed.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }

    /// Ends all sessions in order, and waits until their devices are detached; no session begins any more. `leave`:
    /// but for those that another process can go on with, which are left as they are.
    pub(super) async fn end_all(&self, leave: bool) {
        self.closed.store(true, Ordering::Release);
        let end = |attachment: &Attachment| match leave {
            true => attachment.leave(),
            false => attachment.end(EndReason::Shutdown),
        };
        self.slots
            .iter()
            .filter_map(|slot| slot.attachment())
            .for_each(|attachment| end(&attachment));
        for slot in &self.slots {
            // A session that was about to begin when we closed has begun once the gate is free.
            let _gate = slot.gate.lock().await;
            if let Some(attachment) = slot.attachment() {
                end(&attachment);
                attachment.detached().await;
            }
        }
    }

    /// Gives `link` to the slot's session, or begins one. `takeover`: also where another link of the same user lives.
    pub(super) async fn offer(
        &self,
        slot: &Arc<Slot>,
        takeover: bool,
        link: Link,
    ) -> Result<(), Refusal> {
        // Whoever waits here finds what the link before it made of the slot.
        let _gate = slot.gate.lock().await;
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::stopping());
        }
        match slot.live_occupant().await {
            Some(occupant) => slot.join(&occupant, takeover, link),
            None => slot.begin(link, &self.room).await,
        }
    }
}

/// Who is in a slot, and what came of those before. One value, so that nothing is counted twice or not at all.
#[derive(Clone, Default)]
struct Occupancy {
    occupant: Option<Occupant>,
    past: Totals,
}

/// The session in a slot.
#[derive(Clone)]
struct Occupant {
    attachment: Attachment,
    /// Who began it.
    first: Peer,
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
pub(super) struct Totals {
    /// Sessions that ended in order.
    pub(super) in_order: u64,
    /// Sessions that failed.
    pub(super) failed: u64,
    /// Bytes that the machine has read.
    pub(super) bytes_read: u64,
    /// Requests that the machine has made.
    pub(super) requests: u64,
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
pub(super) struct Slot {
    config: Arc<Config>,
    index: usize,
    runtime_dir: PathBuf,
    audit: Audit,
    gate: Arc<tokio::sync::Mutex<()>>,
    occupancy: watch::Sender<Occupancy>,
    /// The JSON of [`Slot::view`], as it was told last.
    told: watch::Sender<String>,
}

impl Slot {
    fn new(config: Arc<Config>, index: usize, runtime_dir: PathBuf, audit: Audit) -> Self {
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
    pub(super) fn configuration(&self) -> &Configuration {
        &self.config.configurations[self.index]
    }

    /// Whether this user may.
    pub(super) fn permits(&self, user: &str, right: Right) -> bool {
        self.configuration().allow.permits(user, right)
    }

    /// Configuration and session, now.
    pub(super) fn view(&self) -> ConfigurationView {
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
    pub(super) fn totals(&self) -> Totals {
        let Occupancy { occupant, past } = self.occupancy.borrow().clone();
        occupant.map_or(past, |occupant| {
            past.with(&occupant.attachment.status().borrow())
        })
    }

    /// The JSON of [`Slot::view`]: on change, and at most once a second where only counters moved.
    pub(super) fn changes(&self) -> watch::Receiver<String> {
        self.told.subscribe()
    }

    /// Detaches. An empty slot is as good as ejected.
    pub(super) async fn eject(&self, force: bool) -> Result<Ejected, EjectError> {
        let Some(attachment) = self.attachment() else {
            return Ok(Ejected::Free);
        };
        let ejected = attachment.eject(force).await;
        if ejected == Ok(Ejected::Free) {
            self.vacated().await;
        }
        ejected
    }

    fn attachment(&self) -> Option<Attachment> {
        self.occupancy
            .borrow()
            .occupant
            .as_ref()
            .map(|occupant| occupant.attachment.clone())
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
    async fn live_occupant(&self) -> Option<Occupant> {
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
    fn join(&self, occupant: &Occupant, takeover: bool, link: Link) -> Result<(), Refusal> {
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
    async fn recover(self: Arc<Self>, room: Room, _gate: OwnedMutexGuard<()>) {
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

    async fn begin(self: &Arc<Self>, link: Link, room: &Room) -> Result<(), Refusal> {
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

/// Keeps [`Slot::changes`] up to date.
async fn publish(slot: Arc<Slot>, version: Arc<watch::Sender<u64>>) {
    let mut occupancies = slot.occupancy.subscribe();
    let mut statuses = None;
    let mut view = slot.view();
    let mut due = Instant::now();
    let mut waiting = false;
    loop {
        tokio::select! {
            changed = occupancies.changed() => {
                if changed.is_err() {
                    return;
                }
                let occupancy = occupancies.borrow_and_update();
                statuses = occupancy.occupant.as_ref().map(|occupant| occupant.attachment.status());
            }
            () = next_status(&mut statuses) => {}
            () = sleep_until(due), if waiting => {}
        }
        let now = slot.view();
        waiting = now != view && same_but_counters(&now, &view) && Instant::now() < due;
        if now != view && !waiting {
            view = now;
            due = Instant::now() + COUNTERS;
            slot.told.send_replace(json(&view));
            version.send_modify(|version| *version += 1);
        }
    }
}

/// Waits for the next change, if need be for ever.
async fn next_status(statuses: &mut Option<watch::Receiver<Status>>) {
    if let Some(present) = statuses {
        if present.changed().await.is_ok() {
            return;
        }
        *statuses = None;
    }
    std::future::pending::<()>().await;
}

fn same_but_counters(one: &ConfigurationView, other: &ConfigurationView) -> bool {
    let uncounted = |view: &ConfigurationView| {
        view.session.clone().map(|session| SessionView {
            bytes_read: 0,
            requests: 0,
            seconds_left: None,
            keep: session.keep.map(|keep| KeepState {
                bytes: 0,
                seconds_left: None,
                ..keep
            }),
            ..session
        })
    };
    uncounted(one) == uncounted(other)
}

fn json(view: &ConfigurationView) -> String {
    serde_json::to_string(view).unwrap_or_default()
}
