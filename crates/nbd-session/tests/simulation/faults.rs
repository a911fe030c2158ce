//! What goes wrong with links and pages.

use bytes::Bytes;
use nbd_session::control::PageMessage;
use nbd_session::{Closing, EndReason, LinkKind};

use crate::agenda::{MILLISECOND, SECOND};
use crate::event::{Event, Message};
use crate::page::Offer;
use crate::world::{TROUBLE, World};

impl World {
    pub(crate) fn trouble(&mut self) {
        if self.agenda.now > TROUBLE || self.ended {
            return;
        }
        let pause = self.random.between(10 * MILLISECOND, 20 * SECOND);
        self.agenda.after(pause, Event::Trouble);
        let noted = self.note();
        let Some(connection) = self.connections.len().checked_sub(1) else {
            return;
        };
        match self.random.below(100) {
            0..35 => self.cut(connection),
            35..45 => {
                self.page.store.crash(&mut self.random);
                self.statistics.count("crashes");
                self.connections[connection].dead = true;
                self.cut(connection);
                self.agenda.after(
                    SECOND,
                    Event::Connect {
                        offer: Offer::Right,
                        anyway: true,
                    },
                );
            }
            45..60 => self.silence(connection),
            60..75 => {
                let offer = self.next_offer();
                self.happen(Event::Connect {
                    offer,
                    anyway: true,
                });
            }
            75..85 => self.misbehave(connection),
            85..86 => self.deliver(connection, Message::Closed(Closing::Clean)),
            86..87 if self.connections[connection].kind == LinkKind::V1 => {
                self.deliver(connection, Message::Text(PageMessage::Bye.encode()));
            }
            87..88 => self.volume.drain(self.agenda.instant(), EndReason::Ejected),
            88..89 => self.volume.end(self.agenda.instant(), EndReason::Ejected),
            89..96 => self.challenge(),
            _ => self.restart(noted),
        }
    }

    /// A connection is lost: what is on its way may arrive or not, and each side learns it in its own time.
    fn cut(&mut self, connection: usize) {
        if self.random.percent(50) {
            self.connections[connection].silent = true;
        }
        let link = self.connections[connection].link;
        let lost = || Closing::Lost("reset by peer".into());
        if self.connections[connection].silent && !self.connections[connection].gone {
            self.connections[connection].gone = true;
            self.volume
                .handle_closed(self.agenda.instant(), link, lost());
        }
        self.deliver(connection, Message::Closed(lost()));
        let delay = self.random.below(10 * SECOND);
        self.agenda.after(delay, Event::PageHears { connection });
    }

    /// Nothing passes any more, and nobody says so.
    fn silence(&mut self, connection: usize) {
        let here = &mut self.connections[connection];
        here.silent = true;
        // Nothing but a late request shows that a plain link is silent.
        self.stalled |= here.kind == LinkKind::Plain;
        let delay = self.random.between(SECOND, 60 * SECOND);
        self.agenda.after(delay, Event::PageHears { connection });
    }

    /// The page breaks a rule.
    fn misbehave(&mut self, connection: usize) {
        let duplicate = self.connections[connection].duplicate();
        let nonsense = match self.random.below(4) {
            3 if !duplicate.is_empty() => Message::Data(duplicate),
            0 => Message::Data(Bytes::from_static(&[0xff; 64])),
            1 => Message::Text("{".into()),
            _ => Message::Text(r#"{"type":"image","name":"again","size":1}"#.into()),
        };
        self.connections[connection].misbehaved = true;
        self.deliver(connection, nonsense);
    }

    /// What the page will serve next: often enough another image, as long as there is trouble.
    pub(crate) fn next_offer(&mut self) -> Offer {
        let others = [
            Offer::OtherSize,
            Offer::OtherName,
            Offer::Modified,
            Offer::OtherAbilities,
            Offer::Inconsistent,
        ];
        if self.agenda.now > TROUBLE || self.machine.is_none() || self.random.percent(80) {
            return Offer::Right;
        }
        // Only what was seen can be compared, and what was written is not.
        if self.has_seen() && !self.writable && self.random.percent(50) {
            Offer::OtherContent
        } else {
            self.random.pick(&others)
        }
    }

    /// What was to be offered, unless the program has forgotten meanwhile what it had seen.
    pub(crate) fn possible(&self, offer: Offer) -> Offer {
        if offer == Offer::OtherContent && !self.has_seen() {
            Offer::Right
        } else {
            offer
        }
    }

    fn has_seen(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.read > 0)
    }
}
