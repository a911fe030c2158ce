//! What the sessions of all slots share: places, memory, and turns.

use std::sync::Arc;

use tokio::{
    runtime::{Handle, Id},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    attachment::{Settings, Turns},
    config::ServeLimits,
    serve::{
        limits::{Limit, Reached},
        memory::{Memory, Part},
        refusal::Refusal,
    },
};

/// What sessions share.
#[derive(Clone)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    most: usize,
    memory: Arc<Memory>,
    /// Of each runtime.
    turns: Arc<[(Id, Turns)]>,
}

/// What one session has of it.
pub(super) struct Seated {
    _place: Option<OwnedSemaphorePermit>,
    _memory: Part,
}

impl Room {
    pub(super) fn new(limits: &ServeLimits, runtimes: &[Handle]) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.sessions)),
            most: limits.sessions,
            memory: Memory::new(limits.memory, limits.sessions),
            turns: (runtimes.iter())
                .map(|runtime| (runtime.id(), Turns::new()))
                .collect(),
        }
    }

    /// A place, if there is one.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Refusal::too_many(Reached {
                limit: Limit::Sessions,
                most: self.most,
            })
        })
    }

    /// Sees to it that a session has no more in memory than there is for it, and takes turns with the others of the
    /// runtime within which this is called.
    pub(super) fn seat(
        &self,
        settings: &mut Settings,
        place: Option<OwnedSemaphorePermit>,
    ) -> Seated {
        let wanted = settings.limits.memory();
        let memory = self.memory.part(wanted);
        if memory.bytes() < wanted {
            settings.limits = settings.limits.within(memory.bytes());
        }
        let here = Handle::current().id();
        let turns = self.turns.iter().find(|(runtime, _)| *runtime == here);
        settings.turns = turns.map(|(_, turns)| turns.clone());
        Seated {
            _place: place,
            _memory: memory,
        }
    }
}
