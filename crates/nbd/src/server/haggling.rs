//! The server's answers to options (proto.md, "Option types", "Option reply types").

use std::collections::VecDeque;

use bytes::Bytes;

use super::HandshakeError;
use super::options::{BadOption, InfoRequest, MetaContextRequest};
use super::reply::BASE_ALLOCATION_ID;
use super::transmission::offered_flags;
use crate::export::{Export, Negotiated};
use crate::text::{InvalidString, parse_string, with_length};
use crate::wire::{
    BASE_ALLOCATION, ClientFlags, InfoType, MAX_STRING_LENGTH, OptionCode, OptionReplyCode,
    OptionReplyHeader, RESERVED_ZEROES, wire_length,
};

/// How it goes on after an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With the next option.
    GoOn,
    /// Not at all.
    Abort,
    /// Under TLS; the acknowledgement is still to be sent.
    StartTls,
    /// With the transmission of the export of this index.
    Choose(usize),
}

/// Where a connection stands with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    /// NOTLS: there is none.
    Refused,
    /// FORCEDTLS: nothing before it.
    Required,
    /// It is spoken.
    Spoken,
}

/// What was agreed on so far, and the answers that are to be sent.
#[derive(Debug)]
pub(super) struct Haggling {
    exports: Vec<Export>,
    output: VecDeque<Bytes>,
    tls: Tls,
    no_zeroes: bool,
    structured_replies: bool,
    /// The export for which `base:allocation` is selected.
    meta_context: Option<usize>,
}

impl Haggling {
    pub(super) fn new(exports: Vec<Export>, tls: Tls) -> Self {
        Self {
            exports,
            output: VecDeque::new(),
            tls,
            no_zeroes: false,
            structured_replies: false,
            meta_context: None,
        }
    }

    pub(super) fn set_client_flags(&mut self, flags: ClientFlags) -> Result<(), HandshakeError> {
        // proto.md, "Server-side requirements": without fixed newstyle there is no TLS to ask for.
        if self.tls == Tls::Required && !flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            return Err(HandshakeError::TlsRequired);
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        Ok(())
    }

    /// The same exports for the same client, to whom nothing was said yet.
    pub(super) fn inside_tls(&mut self) -> Self {
        Self {
            no_zeroes: self.no_zeroes,
            ..Self::new(std::mem::take(&mut self.exports), Tls::Spoken)
        }
    }

    pub(super) fn start_tls_acknowledgement() -> Bytes {
        option_reply(OptionCode::STARTTLS, OptionReplyCode::ACK, &[])
    }

    pub(super) fn poll_output(&mut self) -> Option<Bytes> {
        self.output.pop_front()
    }

    /// The export as the client was told of it, and what holds in its transmission.
    pub(super) fn agreement(&self, index: usize) -> (Export, Negotiated) {
        let mut export = self.exports[index].clone();
        export.flags = offered_flags(export.flags, self.structured_replies);
        let negotiated = Negotiated {
            structured_replies: self.structured_replies,
            base_allocation: self.meta_context == Some(index),
        };
        (export, negotiated)
    }

    /// Answers an option. Its data is `None` where it was too long to be kept.
    pub(super) fn handle(
        &mut self,
        option: OptionCode,
        data: Option<&[u8]>,
    ) -> Result<Verdict, HandshakeError> {
        if option == OptionCode::EXPORT_NAME {
            if self.tls == Tls::Required {
                return Err(HandshakeError::TlsRequired);
            }
            return self.choose_by_name(data);
        }
        match self.answer(option, data) {
            Ok(Verdict::StartTls) => Ok(Verdict::StartTls),
            Ok(verdict) => {
                self.reply(option, OptionReplyCode::ACK, &[]);
                Ok(verdict)
            }
            Err(BadOption { reply, message }) => {
                self.reply(option, reply, message.as_bytes());
                Ok(Verdict::GoOn)
            }
        }
    }

    /// Answers an option except for the last reply, which is an acknowledgement or an error.
    fn answer(&mut self, option: OptionCode, data: Option<&[u8]>) -> Result<Verdict, BadOption> {
        let has_data = data.is_none_or(|data| !data.is_empty());
        match option {
            OptionCode::ABORT => return Ok(Verdict::Abort),
            OptionCode::STARTTLS if !has_data => return self.start_tls(),
            _ if self.tls == Tls::Required && option != OptionCode::STARTTLS => {
                return Err(BadOption::TLS_REQUIRED);
            }
            OptionCode::LIST | OptionCode::STRUCTURED_REPLY | OptionCode::STARTTLS if has_data => {
                return Err(BadOption::HAS_DATA);
            }
            OptionCode::LIST => self.list(),
            OptionCode::STRUCTURED_REPLY => self.structured_replies = true,
            OptionCode::INFO => {
                self.inform(option, data)?;
            }
            OptionCode::GO => return Ok(Verdict::Choose(self.inform(option, data)?)),
            OptionCode::LIST_META_CONTEXT => self.list_meta_contexts(data)?,
            OptionCode::SET_META_CONTEXT => self.set_meta_context(data)?,
            _ => return Err(BadOption::UNSUPPORTED),
        }
        Ok(Verdict::GoOn)
    }

    fn start_tls(&self) -> Result<Verdict, BadOption> {
        match self.tls {
            Tls::Refused => Err(BadOption::UNSUPPORTED),
            Tls::Required => Ok(Verdict::StartTls),
            Tls::Spoken => Err(BadOption::TLS_ALREADY),
        }
    }

    /// NBD_OPT_EXPORT_NAME: it has no error reply, so that whatever is wrong ends the session.
    fn choose_by_name(&mut self, data: Option<&[u8]>) -> Result<Verdict, HandshakeError> {
        let name = parse_string(data.ok_or(InvalidString::TooLong(MAX_STRING_LENGTH + 1))?)?;
        let index = self
            .find(&name)
            .ok_or(HandshakeError::UnknownExport(name))?;
        let mut reply = self.size_and_flags(index);
        if !self.no_zeroes {
            reply.extend_from_slice(&[0; RESERVED_ZEROES]);
        }
        self.output.push_back(reply.into());
        Ok(Verdict::Choose(index))
    }

    fn list(&mut self) {
        let entries: Vec<_> = self
            .exports
            .iter()
            .map(|export| {
                let description = export.description.as_deref().unwrap_or_default();
                [&with_length(&export.name), description.as_bytes()].concat()
            })
            .collect();
        for entry in entries {
            self.reply(OptionCode::LIST, OptionReplyCode::SERVER, &entry);
        }
    }

    /// NBD_OPT_INFO and NBD_OPT_GO: describes an export, and gives its index.
    fn inform(&mut self, option: OptionCode, data: Option<&[u8]>) -> Result<usize, BadOption> {
        let request = InfoRequest::parse(data.ok_or(BadOption::TOO_LONG)?)?;
        let index = self
            .find(&request.export)
            .ok_or(BadOption::UNKNOWN_EXPORT)?;
        let mut infos = vec![(InfoType::EXPORT, self.size_and_flags(index))];
        let export = &self.exports[index];
        if request.wants(InfoType::NAME) {
            infos.push((InfoType::NAME, export.name.clone().into_bytes()));
        }
        if let Some(description) = &export.description
            && request.wants(InfoType::DESCRIPTION)
        {
            infos.push((InfoType::DESCRIPTION, description.clone().into_bytes()));
        }
        if request.wants(InfoType::BLOCK_SIZE) {
            let sizes = export.effective_block_sizes();
            let sizes = [sizes.minimum, sizes.preferred, sizes.maximum].map(u32::to_be_bytes);
            infos.push((InfoType::BLOCK_SIZE, sizes.concat()));
        }
        for (info, payload) in infos {
            let data = [&info.0.to_be_bytes()[..], &payload].concat();
            self.reply(option, OptionReplyCode::INFO, &data);
        }
        Ok(index)
    }

    fn list_meta_contexts(&mut self, data: Option<&[u8]>) -> Result<(), BadOption> {
        let (_, queries) = self.parse_meta_contexts(data)?;
        let matches = |query: &String| query == "base:" || query == BASE_ALLOCATION;
        if queries.is_empty() || queries.iter().any(matches) {
            self.reply_meta_context(OptionCode::LIST_META_CONTEXT, 0);
        }
        Ok(())
    }

    fn set_meta_context(&mut self, data: Option<&[u8]>) -> Result<(), BadOption> {
        self.meta_context = None;
        let (index, queries) = self.parse_meta_contexts(data)?;
        if queries.iter().any(|query| query == BASE_ALLOCATION) {
            self.meta_context = Some(index);
            self.reply_meta_context(OptionCode::SET_META_CONTEXT, BASE_ALLOCATION_ID);
        }
        Ok(())
    }

    /// The index of the export and the queries.
    fn parse_meta_contexts(&self, data: Option<&[u8]>) -> Result<(usize, Vec<String>), BadOption> {
        if !self.structured_replies {
            return Err(BadOption::NOT_STRUCTURED);
        }
        let request = MetaContextRequest::parse(data.ok_or(BadOption::TOO_LONG)?)?;
        let index = self
            .find(&request.export)
            .ok_or(BadOption::UNKNOWN_EXPORT)?;
        Ok((index, request.queries))
    }

    /// The export of this name; for the empty name, if nothing has it, the first.
    fn find(&self, name: &str) -> Option<usize> {
        let found = self.exports.iter().position(|export| export.name == name);
        found.or_else(|| (name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    fn size_and_flags(&self, index: usize) -> Vec<u8> {
        let (export, _) = self.agreement(index);
        [
            &export.size.to_be_bytes()[..],
            &export.flags.bits().to_be_bytes(),
        ]
        .concat()
    }

    fn reply_meta_context(&mut self, option: OptionCode, id: u32) {
        let data = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
        self.reply(option, OptionReplyCode::META_CONTEXT, &data);
    }

    fn reply(&mut self, option: OptionCode, reply: OptionReplyCode, data: &[u8]) {
        self.output.push_back(option_reply(option, reply, data));
    }
}

fn option_reply(option: OptionCode, reply: OptionReplyCode, data: &[u8]) -> Bytes {
    let header = OptionReplyHeader {
        option,
        reply,
        length: wire_length(data.len()),
    };
    [&header.to_bytes()[..], data].concat().into()
}
