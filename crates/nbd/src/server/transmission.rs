//! Requests and replies, from the server's side (proto.md, "Transmission").

use std::ops::ControlFlow;

use bytes::Bytes;

use super::TransmissionError;
use super::reply::encode_reply;
use crate::command::{Command, Failure, Reply};
use crate::export::{Export, Negotiated};
use crate::input::Input;
use crate::payload::Payload;
use crate::rules::{BrokenRule, Rules, meaningful_flags};
use crate::wire::{
    CommandFlags, CommandType, DEFAULT_MAXIMUM_PAYLOAD, RequestHeader, TransmissionFlags,
};

/// The most data in one chunk: its length field also counts the offset.
const MAX_DATA: u32 = u32::MAX - 8;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A request that keeps all rules: to be carried out and answered.
    Request {
        /// To be given to [`Transmission::reply`].
        reply_to: ReplyTo,
        /// How to do it.
        flags: CommandFlags,
        /// What to do.
        command: Command,
    },
    /// A request that breaks a rule: to be answered with the failure.
    Refused {
        /// To be given to [`Transmission::reply`].
        reply_to: ReplyTo,
        /// What to answer.
        failure: Failure,
    },
    /// `NBD_CMD_DISC`: answer what is outstanding, then close. Nothing follows.
    Disconnect,
}

/// The right to answer one request once.
#[derive(Debug, PartialEq, Eq)]
pub struct ReplyTo(pub(super) RequestHeader);

/// Requests and replies, from the server's side.
///
/// A client may have as many requests outstanding as it likes: to bound them, stop feeding input
/// while there are too many. What is kept for one that has not arrived whole is at most
/// [`BlockSizes::maximum`](crate::BlockSizes::maximum).
#[derive(Debug)]
pub struct Transmission {
    rules: Rules,
    input: Input,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A request is awaited.
    Header,
    /// The data of a WRITE is awaited.
    Payload {
        header: RequestHeader,
        data: Payload,
    },
    /// The data of a WRITE that breaks a rule is dropped as it comes.
    Skip {
        header: RequestHeader,
        rule: BrokenRule,
        remaining: usize,
    },
    /// The client ended the session.
    Disconnected,
    /// The client broke the protocol.
    Failed(TransmissionError),
}

/// What a step came to: something to tell, or `None` when more input is needed.
type Step = ControlFlow<Option<Incoming>>;

impl Transmission {
    /// Transmission without a handshake of this crate, as with the kernel's NBD driver.
    pub fn new(export: &Export, negotiated: Negotiated) -> Self {
        Self::after_handshake(export, negotiated, Input::default())
    }

    /// Transmission after a handshake that left `input` unread.
    pub(super) fn after_handshake(
        export: &Export,
        mut negotiated: Negotiated,
        input: Input,
    ) -> Self {
        negotiated.base_allocation &= negotiated.structured_replies;
        let mut rules = Rules::new(export, negotiated);
        rules.flags = offered_flags(export.flags, negotiated.structured_replies);
        rules.block_sizes.maximum = rules.block_sizes.maximum.min(MAX_DATA);
        Self {
            rules,
            input,
            state: State::Header,
        }
    }

    /// Takes what arrived; to be followed by [`Self::poll_request`] until it gives `None`.
    pub fn handle_input(&mut self, input: Bytes) {
        self.input.push(input);
    }

    /// The next thing the client sent; `None` until more has arrived, and for ever after
    /// [`Incoming::Disconnect`].
    pub fn poll_request(&mut self) -> Result<Option<Incoming>, TransmissionError> {
        loop {
            match self.step() {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(incoming)) => return Ok(incoming),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// The length of a WRITE whose data is awaited, in bytes, once [`Self::poll_request`] has given `None`: what feeding
    /// more input may make this keep.
    pub fn awaited_payload(&self) -> Option<u32> {
        match &self.state {
            State::Payload { header, .. } => Some(header.length),
            _ => None,
        }
    }

    /// Appends the bytes of a reply to `out`: a header, and for READ the parts of its data.
    ///
    /// A reply that does not fit the request, such as data of another length than was asked for,
    /// becomes EIO: the client never sees what it could not understand.
    pub fn reply(&self, reply_to: ReplyTo, result: Result<Reply, Failure>, out: &mut Vec<Bytes>) {
        encode_reply(
            self.rules.negotiated.structured_replies,
            reply_to,
            result,
            out,
        );
    }

    /// What was agreed on with the client.
    pub fn negotiated(&self) -> Negotiated {
        self.rules.negotiated
    }

    fn step(&mut self) -> Result<Step, TransmissionError> {
        let Self { input, state, .. } = self;
        match state {
            State::Header => return self.read_header(),
            State::Payload { header, data } => {
                let length = header.length as usize;
                while data.len() < length && input.len() > 0 {
                    data.push(input.take_some(length - data.len()));
                }
                if data.len() == length {
                    let (header, data) = (*header, std::mem::take(data));
                    *state = State::Header;
                    return Ok(ControlFlow::Break(Some(request(header, data))));
                }
            }
            State::Skip {
                header,
                rule,
                remaining,
            } => {
                *remaining -= input.skip(*remaining);
                if *remaining == 0 {
                    let refused = refused(*header, *rule);
                    *state = State::Header;
                    return Ok(ControlFlow::Break(Some(refused)));
                }
            }
            State::Disconnected => {
                input.skip(usize::MAX);
            }
            State::Failed(error) => return Err(error.clone()),
        }
        Ok(ControlFlow::Break(None))
    }

    fn read_header(&mut self) -> Result<Step, TransmissionError> {
        let Some(bytes) = self.input.take_array() else {
            return Ok(ControlFlow::Break(None));
        };
        let header = RequestHeader::parse(&bytes).map_err(TransmissionError::Magic)?;
        if header.command == CommandType::DISC {
            self.state = State::Disconnected;
            return Ok(ControlFlow::Break(Some(Incoming::Disconnect)));
        }
        let RequestHeader {
            flags,
            command,
            offset,
            length,
            ..
        } = header;
        let checked = self.rules.check(flags, command, offset, u64::from(length));
        if command != CommandType::WRITE {
            return Ok(ControlFlow::Break(Some(match checked {
                Ok(()) => request(header, Payload::new()),
                Err(rule) => refused(header, rule),
            })));
        }
        let limit = self.rules.block_sizes.maximum.max(DEFAULT_MAXIMUM_PAYLOAD);
        if length > limit {
            return Err(TransmissionError::PayloadTooLong { length, limit });
        }
        self.state = match checked {
            Ok(()) => State::Payload {
                header,
                data: Payload::new(),
            },
            Err(rule) => State::Skip {
                header,
                rule,
                remaining: length as usize,
            },
        };
        Ok(ControlFlow::Continue(()))
    }
}

/// The transmission flags that a client is told of and may rely on.
pub(super) fn offered_flags(
    flags: TransmissionFlags,
    structured_replies: bool,
) -> TransmissionFlags {
    let ours = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF;
    meaningful_flags(flags | ours, structured_replies)
}

/// A request that keeps all rules, which makes the last arm of the commands the only one left.
fn request(header: RequestHeader, data: Payload) -> Incoming {
    let RequestHeader { offset, length, .. } = header;
    let command = match header.command {
        CommandType::READ => Command::Read { offset, length },
        CommandType::WRITE => Command::Write { offset, data },
        CommandType::TRIM => Command::Trim { offset, length },
        CommandType::CACHE => Command::Cache { offset, length },
        CommandType::WRITE_ZEROES => Command::WriteZeroes { offset, length },
        CommandType::BLOCK_STATUS => Command::BlockStatus { offset, length },
        _ => Command::Flush,
    };
    let flags = CommandFlags::from_bits_truncate(header.flags);
    Incoming::Request {
        reply_to: ReplyTo(header),
        flags,
        command,
    }
}

fn refused(header: RequestHeader, rule: BrokenRule) -> Incoming {
    let failure = Failure::new(rule.errno(), rule.to_string());
    Incoming::Refused {
        reply_to: ReplyTo(header),
        failure,
    }
}
