//! What the sessions of all slots share: places, memory, and turns.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    turns: Turns,
}

/// What one session has of it.
pub(super) struct Seated {
    _place: Option<OwnedSemaphorePermit>,
    _memory: Part,
}

impl Room {
    pub(super) fn new(limits: &ServeLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.sessions)),
            most: limits.sessions,
            memory: Memory::new(limits.memory, limits.sessions),
            turns: Turns::new(),
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

    /// Sees to it that a session has no more in memory than there is for it, and takes turns with the others.
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
        settings.turns = Some(self.turns.clone());
        Seated {
            _place: place,
            _memory: memory,
        }
    }
}
