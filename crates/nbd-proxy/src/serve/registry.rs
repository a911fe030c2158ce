//! The configurations of a running server: a slot each, with at most one session in it.

mod publish;
mod room;
mod slot;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nbd_session::EndReason;
use tokio::{runtime::Handle, sync::watch};

use self::room::Room;
pub(super) use self::slot::Slot;
use super::{refusal::Refusal, threads};
use crate::{
    attachment::Attachment,
    audit::Audit,
    claim,
    config::{Config, Right},
    link::Link,
};

/// All slots.
pub(super) struct Registry {
    slots: Vec<Arc<Slot>>,
    version: watch::Receiver<u64>,
    closed: AtomicBool,
    room: Room,
    /// Those of the threads on which sessions run.
    runtimes: Vec<Handle>,
}

impl Registry {
    /// A slot for each configuration. R is `runtime_dir`. What an earlier process left of each is seen to at once: there
    /// may be readers who wait. Must be called within the runtime.
    pub(super) fn new(
        config: &Arc<Config>,
        runtime_dir: &Path,
        audit: &Audit,
        runtimes: &[Handle],
    ) -> Self {
        let (sender, version) = watch::channel(0);
        let sender = Arc::new(sender);
        let room = Room::new(&config.serve.limits, runtimes);
        let slots = (0..config.configurations.len())
            .map(|index| {
                let slot = Slot::new(
                    Arc::clone(config),
                    index,
                    runtime_dir.to_owned(),
                    audit.clone(),
                );
                let slot = Arc::new(slot);
                tokio::spawn(publish::publish(Arc::clone(&slot), Arc::clone(&sender)));
                if let Ok(gate) = Arc::clone(&slot.gate).try_lock_owned() {
                    threads::idlest(runtimes, &[], index)
                        .spawn(Arc::clone(&slot).recover(room.clone(), gate));
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
            runtimes: runtimes.to_vec(),
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

    /// Bytes that the machine has read and written in the sessions that there are.
    pub(super) fn moved(&self) -> u64 {
        let attachments = self.slots.iter().filter_map(|slot| slot.attachment());
        attachments
            .map(|attachment| {
                let status = attachment.status();
                let status = status.borrow();
                status.bytes_read.wrapping_add(status.bytes_written)
            })
            .fold(0, u64::wrapping_add)
    }

    /// Grows after any slot's [`Slot::changes`] has changed.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }

    /// The runtime of the slot's session; where there is none, that in which one is to begin.
    pub(super) fn runtime_of(&self, slot: &Slot) -> Handle {
        slot.runtime().unwrap_or_else(|| {
            let sessions: Vec<_> = (self.slots.iter())
                .filter_map(|slot| slot.runtime().map(|runtime| runtime.id()))
                .collect();
            threads::idlest(&self.runtimes, &sessions, slot.index())
        })
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
