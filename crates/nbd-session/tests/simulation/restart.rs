//! The program is killed, and another one goes on with what it had noted.

use nbd_session::{DevicePhase, Session, Volume};

use crate::agenda::SECOND;
use crate::event::Event;
use crate::world::World;

/// What the program notes, as JSON, and how many reads the machine had seen answered by then.
pub(crate) struct Note(String, u64);

impl World {
    /// The program makes a note now and then; gives the one before.
    pub(crate) fn note(&mut self) -> Option<Note> {
        let snapshot = self.volume.snapshot();
        assert!(
            !self.writable || snapshot.is_none(),
            "a writable image is noted"
        );
        let read = self.machine.as_ref().map_or(0, |machine| machine.read);
        let note = |snapshot| Note(serde_json::to_string(&snapshot).unwrap(), read);
        std::mem::replace(&mut self.noted, snapshot.map(note))
    }

    /// The program is killed. Its successor has the device, and the kernel asks again for what was not answered.
    pub(crate) fn restart(&mut self, earlier: Option<Note>) {
        // Where it can't be noted any more, there is nothing to go on with.
        let Some(last) = self.noted.take() else {
            return;
        };
        let Note(record, read) = earlier.unwrap_or(last);
        self.lose_all_links();
        self.lose_copy();
        let now = self.agenda.instant();
        let snapshot = serde_json::from_str(&record).unwrap();
        let session = Session::restore(self.config.clone(), now, snapshot).unwrap();
        self.volume = Volume::new(session).with_cache(self.cache);
        self.held = false;
        self.alone = false;
        self.statistics.count("restarted");
        self.log(format_args!("restarted"));
        let device = Some("/dev/nbd0".into());
        self.volume.set_device(now, DevicePhase::Attached, device);
        if self.keeper.is_some() {
            self.volume.begin_keep(now);
        }
        let machine = self.machine.as_mut().expect("what is noted is attached");
        machine.read = read;
        for (request, flags, command) in machine.unanswered() {
            self.volume.submit(now, request, flags, command);
        }
    }

    fn lose_all_links(&mut self) {
        for connection in &mut self.connections {
            connection.silent = true;
            connection.gone = true;
        }
        if let Some(connection) = self.connections.len().checked_sub(1) {
            let delay = self.random.below(20 * SECOND);
            self.agenda.after(delay, Event::PageHears { connection });
        }
    }

    fn lose_copy(&mut self) {
        self.incarnation += 1;
        self.independent = false;
        if let Some(keeper) = &mut self.keeper {
            keeper.begin_anew();
        }
    }
}
