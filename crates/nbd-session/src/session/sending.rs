//! What a session tells its links, and the device of its requests.

use std::time::Instant;

use bytes::Bytes;
use nbd::wire::Errno;
use nbd::{Export, Reply};

use super::config::{LinkId, LinkKind, Output, RequestId};
use super::{Session, State};
use crate::control::{DevicePhase, DeviceState, ServerMessage};
use crate::volume::SECTOR;

/// The longest reason of a close frame, in bytes (RFC 6455, sections 5.5 and 5.5.1).
const MAX_CLOSE_REASON: usize = 123;

impl Session {
    pub(super) fn complete(&mut self, request: RequestId, result: Result<Reply, Errno>) {
        self.outputs.push_back(Output::Complete { request, result });
    }

    pub(super) fn send_bytes(&mut self, link: LinkId, parts: Vec<Bytes>) {
        self.outputs
            .extend(parts.into_iter().map(|data| Output::Send { link, data }));
    }

    /// Sends a text message, if the link carries them.
    pub(super) fn send_text(&mut self, message: &ServerMessage) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == LinkKind::V1) {
            self.outputs.push_back(Output::SendText {
                link: link.id,
                text: message.encode(),
            });
        }
    }

    /// Tells the peer what has become of its image, once it has said which it is. That the session goes on is no news
    /// for a link that has not shown yet that it serves the same image: while none is needed there is none to tell.
    pub(super) fn send_state(&mut self, now: Instant) {
        let has_announced = self.link.as_ref().is_some_and(|link| link.image.is_some());
        if !has_announced || self.state == State::Alone {
            return;
        }
        let seconds_left = match self.state {
            State::Held { until } => Some(until.saturating_duration_since(now).as_secs()),
            _ => None,
        };
        self.send_text(&ServerMessage::State(DeviceState {
            phase: if seconds_left.is_some() {
                DevicePhase::Held
            } else {
                self.phase
            },
            configuration: self.config.configuration.clone(),
            device: self.device.clone(),
            size: self
                .export()
                .map_or(0, |export| export.size.next_multiple_of(SECTOR)),
            read_only: self.export().is_none_or(Export::is_read_only),
            resumed: self.resumed && self.state == State::Served,
            seconds_left,
            hold: self.config.hold.as_secs(),
            keep: self.keep.clone(),
        }));
    }

    pub(super) fn close(&mut self, link: LinkId, code: u16, reason: &str) {
        let fits = |end: &usize| reason.is_char_boundary(*end);
        let end = (0..=reason.len().min(MAX_CLOSE_REASON))
            .rev()
            .find(fits)
            .unwrap_or(0);
        self.outputs.push_back(Output::Close {
            link,
            code,
            reason: reason[..end].into(),
        });
    }
}
