//! How a session changes its state: a link is lost, another resumes it, it ends.

use std::time::Instant;

use nbd::wire::Errno;

use super::config::{Output, SessionEvent};
use super::{Session, State};
use crate::control::ServerMessage;
use crate::reason::{EndReason, Fault, close};

impl Session {
    /// The peer said `bye`.
    pub(super) fn say_farewell(&mut self, now: Instant) {
        match self.state {
            State::Opening => self.finish(EndReason::Bye),
            State::Held { .. } | State::Alone => {
                let Fault { code, reason } = Fault::early_bye();
                self.lose_link(now, &reason, Some(code));
            }
            State::Served if self.ending.is_none() => {
                self.ending = Some(EndReason::Bye);
                self.outputs
                    .push_back(Output::Event(SessionEvent::Ending(EndReason::Bye)));
            }
            State::Served | State::Ended => {}
        }
    }

    /// Closes the link because of what its peer did.
    pub(super) fn fail_link(&mut self, now: Instant, fault: &Fault) {
        if self.state == State::Opening {
            if let Some(link) = self.link.take() {
                self.close(link.id, fault.code, &fault.reason);
            }
            return self.finish(fault.end_reason());
        }
        self.lose_link(now, &fault.reason, Some(fault.code));
    }

    /// Goes on without the link, which is closed with `code` unless it is gone already.
    pub(super) fn lose_link(&mut self, now: Instant, cause: &str, code: Option<u16>) {
        let Some(link) = self.link.take() else { return };
        if let Some(code) = code {
            self.close(link.id, code, cause);
        }
        self.requests.requeue();
        self.miss_link(now, cause.into());
    }

    /// There is no link: the session ends, waits, or goes on.
    pub(super) fn miss_link(&mut self, now: Instant, cause: String) {
        match (self.state, self.ending.clone()) {
            (State::Ended | State::Alone, _) => {}
            (State::Served, _) if self.independent => self.wait(now, cause),
            (_, Some(reason)) => self.finish(reason),
            (State::Opening, _) => self.finish(EndReason::LinkLost(cause)),
            _ if self.config.hold.is_zero() => self.finish(EndReason::LinkLost(cause)),
            (State::Served, _) => self.wait(now + self.config.hold, cause),
            (State::Held { .. }, _) => {}
        }
    }

    /// Waits for a link until then, or for none where none is needed.
    pub(super) fn wait(&mut self, until: Instant, reason: String) {
        let event = if self.independent {
            self.state = State::Alone;
            SessionEvent::Alone { reason }
        } else {
            self.state = State::Held { until };
            SessionEvent::Held { until, reason }
        };
        self.outputs.push_back(Output::Event(event));
    }

    /// The link has shown that it serves the session's image.
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(link) = &self.link
            && self.state != State::Served
        {
            let resumed = SessionEvent::Resumed { link: link.id };
            self.outputs.push_back(Output::Event(resumed));
        }
        self.state = State::Served;
        self.resumed = true;
        self.send_state(now);
    }

    /// Ends: answers what is unanswered, says goodbye.
    pub(super) fn finish(&mut self, reason: EndReason) {
        if self.state == State::Ended {
            return;
        }
        self.state = State::Ended;
        self.log.clear();
        for request in self.requests.take_all() {
            self.outputs.push_back(Output::Complete {
                request: request.id,
                result: Err(Errno::EIO),
            });
        }
        self.send_text(&ServerMessage::End {
            reason: reason.word().into(),
            message: reason.to_string(),
        });
        if let Some(mut link) = self.link.take() {
            let goodbye = if link.is_trusted() {
                link.disconnect()
            } else {
                Vec::new()
            };
            self.send_bytes(link.id, goodbye);
            self.close(link.id, reason.close_code(), &reason.to_string());
        }
        if let Some(link) = self.challenger.take() {
            self.close(link.id, close::GOING_AWAY, "the session has ended");
        }
        self.outputs
            .push_back(Output::Event(SessionEvent::Ended(reason)));
    }
}
