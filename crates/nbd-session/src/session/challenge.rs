//! A link that is to take over from one that lives: first it has to show that it serves the same image.

use std::time::Instant;

use bytes::Bytes;

use super::Session;
use super::config::{LinkId, LinkKind, Output, SessionEvent};
use super::link::{Link, Stage};
use crate::control::{PageMessage, ServerMessage};
use crate::reason::{Fault, close};

impl Session {
    /// A new link exists that may take over, once it has shown that it serves the session's image:
    /// [`SessionEvent::TakenOver`]. Until then the present link serves on, also if this one is refused. Where there is
    /// none, this is [`Self::open_link`].
    ///
    /// A writable image is not taken over: what was written to it lies with the present link's peer.
    pub fn challenge(&mut self, now: Instant, kind: LinkKind) -> LinkId {
        if self.link.is_none() {
            return self.open_link(now, kind);
        }
        let id = self.next_link();
        match &self.identity {
            None => self.close(id, close::IN_USE, "in use by a link that begins just now"),
            Some(identity) if !identity.export.is_read_only() => {
                self.close(id, close::IN_USE, "in use, and writable: eject it first");
            }
            Some(_) => {
                let challenger = Link::new(id, kind, &self.config, now);
                if let Some(older) = self.challenger.replace(challenger) {
                    self.close(older.id, close::SUPERSEDED, "superseded by a newer link");
                }
            }
        }
        id
    }

    pub(super) fn is_challenger(&self, id: LinkId) -> bool {
        self.challenger.as_ref().is_some_and(|link| link.id == id)
    }

    /// NBD bytes of the challenger.
    pub(super) fn weigh_data(&mut self, now: Instant, data: Bytes) {
        // Everything that a link does before it is trusted concerns that link alone: so it can stand in for the
        // session's meanwhile.
        std::mem::swap(&mut self.link, &mut self.challenger);
        let weighed = self.receive(now, data).and_then(|()| self.compare(now));
        let is_same = self.is_done_with(|stage| matches!(stage, Stage::Comparing));
        std::mem::swap(&mut self.link, &mut self.challenger);
        match weighed {
            Ok(()) if is_same => self.hand_over(now),
            Ok(()) => {}
            Err(fault) => self.refuse_challenger(&fault),
        }
    }

    /// A text message of the challenger, if it has not sent too many.
    pub(super) fn weigh_text(&mut self, counted: Result<(), Fault>, text: &str) {
        if let Err(fault) = counted.and_then(|()| self.weigh_message(text)) {
            self.refuse_challenger(&fault);
        }
    }

    fn weigh_message(&mut self, text: &str) -> Result<(), Fault> {
        let (Some(link), Some(identity)) = (&mut self.challenger, &self.identity) else {
            return Ok(());
        };
        if link.kind == LinkKind::Plain {
            return Err(Fault::text_on_plain());
        }
        match PageMessage::parse(text).map_err(Fault::violation)? {
            PageMessage::Image(_) if link.image.is_some() => Err(Fault::second_image()),
            PageMessage::Image(image) => {
                identity.check_announced(&image, LinkKind::V1, self.writes > 0)?;
                link.image = Some(image);
                Ok(())
            }
            PageMessage::Bye => Err(Fault::early_bye()),
            // Only what is served already is worth measuring.
            PageMessage::Ping | PageMessage::Unknown => Ok(()),
        }
    }

    /// Asks for the blocks that are to be compared.
    fn compare(&mut self, now: Instant) -> Result<(), Fault> {
        while let Some((job, flags, command)) = self.next_of_agenda() {
            self.send(now, job, flags, &command)?;
        }
        Ok(())
    }

    /// The challenger serves the same image: it is the session's link from now on.
    fn hand_over(&mut self, now: Instant) {
        let Some(challenger) = self.challenger.take() else {
            return;
        };
        let link = challenger.id;
        if let Some(older) = self.link.replace(challenger) {
            self.close(older.id, close::SUPERSEDED, "taken over by a newer link");
            self.requests.requeue();
        }
        self.outputs
            .push_back(Output::Event(SessionEvent::TakenOver { link }));
        self.pump(now);
    }

    /// Looks whether the challenger is late, and gives it its beat.
    pub(super) fn time_challenger(&mut self, now: Instant) {
        let Some(link) = &mut self.challenger else {
            return;
        };
        let late = link.overdue(&self.config, now).or_else(|| {
            (!link.take_overdue(&self.config, now).is_empty())
                .then(|| Fault::timeout("the image was not compared in time"))
        });
        if let Some(fault) = late {
            return self.refuse_challenger(&fault);
        }
        if link.take_beat(&self.config, now) {
            let link = link.id;
            self.outputs.push_back(Output::SendText {
                link,
                text: ServerMessage::Beat.encode(),
            });
        }
    }

    fn refuse_challenger(&mut self, fault: &Fault) {
        if let Some(link) = self.challenger.take() {
            self.close(link.id, fault.code, &fault.reason);
        }
    }
}
