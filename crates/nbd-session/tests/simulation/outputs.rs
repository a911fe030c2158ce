//! What the session wants done, and whether it may.

use nbd::Reply;
use nbd::wire::Errno;
use nbd_session::control::ServerMessage;
use nbd_session::{
    DevicePhase, EndReason, LinkId, LinkKind, Output, RequestId, SessionEvent, StoreAction,
    StoreId, close,
};

use crate::agenda::SECOND;
use crate::event::Event;
use crate::machine::Machine;
use crate::page::Offer;
use crate::world::World;

impl World {
    /// Does what the session wants done.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.volume.poll_output() {
            match output {
                Output::Send { link, data } => {
                    let connection = self.connection(link);
                    let here = &mut self.connections[connection];
                    let at = (self.agenda.now + self.random.below(self.latency + 1))
                        .max(here.page_has_until);
                    here.page_has_until = at;
                    self.agenda.at(at, Event::ToPage { connection, data });
                }
                Output::SendText { link, text } => {
                    let connection = self.connection(link);
                    assert_eq!(self.connections[connection].kind, LinkKind::V1);
                    ServerMessage::parse(&text).expect("what the session says can be understood");
                }
                Output::Close { link, code, reason } => self.closed_by_session(link, code, &reason),
                Output::Complete { request, result } => self.completed(request, result),
                Output::Arrived { .. } => panic!("a volume answers requests as a whole"),
                Output::Store { task, action } => self.store(task, action),
                Output::Event(event) => self.notice(event),
            }
        }
    }

    /// The store does its tasks in order, and answers in its own time.
    fn store(&mut self, task: StoreId, action: StoreAction) {
        let keeper = self.keeper.as_mut().expect("nothing is stored unasked");
        let result = keeper.carry_out(&mut self.random, action);
        let delay = self.random.below(self.latency + 2);
        keeper.done_at = (self.agenda.now + delay).max(keeper.done_at);
        let at = keeper.done_at;
        let incarnation = self.incarnation;
        self.agenda.at(
            at,
            Event::Stored {
                incarnation,
                task,
                result,
            },
        );
    }

    fn completed(&mut self, request: RequestId, result: Result<Reply, Errno>) {
        self.log(format_args!(
            "{request:?} is answered: {:?}",
            result.as_ref().err()
        ));
        let may_fail = self.may_fail() || self.volume.is_ended();
        let may_lose = self.may_fail() && self.writable;
        self.statistics
            .count(if result.is_ok() { "answered" } else { "failed" });
        let machine = self
            .machine
            .as_mut()
            .expect("nothing is answered before it is asked");
        machine.answer(request, result, may_fail, may_lose);
    }

    fn closed_by_session(&mut self, link: LinkId, code: u16, reason: &str) {
        self.log(format_args!("{link:?} is closed: {code} {reason}"));
        let connection = self.connection(link);
        self.connections[connection].gone = true;
        assert!(!reason.is_empty() && reason.len() <= 123);
        self.statistics.count(match code {
            close::NORMAL => "link closed: 1000",
            close::PROTOCOL_ERROR => "link closed: 1002",
            close::BAD_IMAGE => "link closed: 4400",
            close::TIMEOUT => "link closed: 4408",
            close::OTHER_IMAGE => "link closed: 4410",
            close::IN_USE => "link closed: 4409",
            close::GOING_AWAY => "link closed: 1001",
            close::SUPERSEDED => "link closed: 4412",
            _ => panic!("closed with {code}: {reason}"),
        });
        let here = &self.connections[connection];
        let has_cause = match code {
            close::PROTOCOL_ERROR => here.misbehaved,
            close::BAD_IMAGE => here.offer != Offer::Right,
            close::OTHER_IMAGE => {
                here.offer != Offer::Right
                    || reason.contains("cannot be compared") && self.page.errors > 0
            }
            // A challenger whose page has turned to a newer link says nothing any more either.
            close::TIMEOUT => here.silent || here.dead || self.may_fail() || self.volume.is_ended(),
            _ => true,
        };
        assert!(has_cause, "closed without a cause: {code} {reason}");
        let delay = self.random.below(self.latency + SECOND);
        self.agenda.after(delay, Event::PageHears { connection });
    }

    fn notice(&mut self, event: SessionEvent) {
        self.log(format_args!("{event:?}"));
        assert!(!self.ended, "{event:?} after the end");
        match event {
            SessionEvent::Ready(_) => {
                let geometry = self
                    .volume
                    .geometry()
                    .expect("what is ready has a geometry");
                let in_a_row = self.random.percent(40);
                self.machine = Some(Machine::new(geometry, in_a_row));
                let now = self.agenda.instant();
                self.volume
                    .set_device(now, DevicePhase::Attached, Some("/dev/nbd0".into()));
                if self.keeper.is_some() {
                    self.volume.begin_keep(now);
                }
                self.agenda.after(0, Event::Ask);
            }
            SessionEvent::Held { until, .. } => {
                assert!(!std::mem::replace(&mut self.held, true), "held twice");
                assert!(!self.independent, "held with a whole copy");
                assert!(until > self.agenda.instant());
                self.alone = false;
                self.statistics.count("held");
            }
            SessionEvent::TakenOver { link } => {
                self.check_resumed(link);
                self.statistics.count("taken over");
            }
            SessionEvent::Resumed { link } => {
                let held = std::mem::take(&mut self.held);
                let alone = std::mem::take(&mut self.alone);
                assert!(held != alone, "resumed without being held");
                self.check_resumed(link);
                self.statistics.count("resumed");
            }
            SessionEvent::Whole => {
                assert!(!std::mem::replace(&mut self.independent, true));
                self.statistics.count("copy: whole");
            }
            SessionEvent::Alone { .. } => {
                assert!(self.independent, "nobody has the image");
                assert!(!std::mem::replace(&mut self.alone, true), "alone twice");
                self.held = false;
                self.statistics.count("copy: alone");
            }
            SessionEvent::KeepLost(_) => {
                let keeper = self.keeper.as_ref().expect("there is a copy");
                assert!(keeper.failed, "the copy was given up without a cause");
                if std::mem::take(&mut self.independent) {
                    self.statistics.count("copy: lost when whole");
                }
                self.statistics.count("copy: lost");
            }
            SessionEvent::Ending(_) => {
                let delay = self.random.below(5 * SECOND);
                self.agenda.after(delay, Event::End);
            }
            SessionEvent::Ended(reason) => {
                self.ended = true;
                let of_links = matches!(
                    reason,
                    EndReason::Closed | EndReason::HoldExpired | EndReason::LinkLost(_)
                );
                assert!(!self.independent || !of_links, "ended for want of a link");
                assert_eq!(self.unanswered(), 0, "ended before everything was answered");
                self.statistics.count(match reason {
                    EndReason::Bye => "ended: bye",
                    EndReason::Closed => "ended: closed",
                    EndReason::Ejected => "ended: ejected",
                    EndReason::HoldExpired => "ended: hold-expired",
                    EndReason::LinkLost(_) => "ended: link-lost",
                    EndReason::Refused(_) => "ended: refused",
                    reason => panic!("ended: {reason}"),
                });
            }
        }
    }

    /// A link that resumes offers the session's image, as far as its kind lets one see.
    fn check_resumed(&self, link: LinkId) {
        let offer = self.connections[self.connection(link)].offer;
        let same = match self.kinds {
            [LinkKind::V1] => offer == Offer::Right || offer == Offer::Modified && self.writable,
            [LinkKind::Plain] => {
                matches!(offer, Offer::Right | Offer::Modified | Offer::Inconsistent)
            }
            _ => !matches!(
                offer,
                Offer::OtherSize | Offer::OtherContent | Offer::OtherAbilities
            ),
        };
        assert!(same, "resumed with {offer:?}");
    }
}
