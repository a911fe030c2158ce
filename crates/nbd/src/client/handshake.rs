//! The client's handshake (proto.md, "Newstyle negotiation", "Fixed newstyle negotiation").
//!
//! The order of options is NBD_OPT_STRUCTURED_REPLY, NBD_OPT_SET_META_CONTEXT and NBD_OPT_GO; a
//! server that does not know NBD_OPT_GO is asked NBD_OPT_EXPORT_NAME, and one without fixed
//! newstyle nothing else.

use std::collections::VecDeque;

use bytes::Bytes;

use super::info::ExportInfo;
use super::{HandshakeError, Transmission};
use crate::export::{Export, Negotiated};
use crate::input::Input;
use crate::text::{display_text, parse_string, with_length};
use crate::wire::{
    BASE_ALLOCATION, ClientFlags, HandshakeFlags, InfoType, NBD_MAGIC, OLDSTYLE_MAGIC,
    OPTION_MAGIC, OptionCode, OptionHeader, OptionReplyCode, OptionReplyHeader, RESERVED_ZEROES,
    u16_at, u64_at, wire_length,
};

/// The longest reply to an option that is taken, in bytes: a string of the protocol, and room for
/// the fields around it and for information of later versions.
const MAX_REPLY_LENGTH: u32 = 16 * 1024;
/// How many replies to one option are taken.
const MAX_REPLIES: u32 = 64;

/// What to ask a server for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandshakeOptions {
    /// The export's name; empty for the default export.
    pub export: String,
    /// Ask for structured replies.
    pub structured_replies: bool,
    /// Ask for `base:allocation`; without structured replies there is none.
    pub base_allocation: bool,
}

/// The handshake of a new connection, from the client's side.
///
/// A server that closes the connection in the meantime has not answered: to
/// [`OptionCode::EXPORT_NAME`] this is the only way to say no.
#[derive(Debug)]
pub struct Handshake {
    options: HandshakeOptions,
    input: Input,
    output: VecDeque<Bytes>,
    state: State,
    no_zeroes: bool,
    structured_replies: bool,
    meta_context: Option<u32>,
    info: ExportInfo,
}

#[derive(Debug)]
enum State {
    /// The server's two magic numbers and its flags are awaited.
    Greeting,
    /// Replies to this option are awaited; so many have come.
    Option(OptionCode, u32),
    /// The reply to NBD_OPT_EXPORT_NAME is awaited, which has a form of its own.
    ExportName,
    /// The server agreed; to be fetched with `finish`.
    Agreed(Export),
    /// It was fetched.
    Finished,
    /// The server, or what we want of it, is beyond help.
    Failed(HandshakeError),
}

impl Handshake {
    /// Begins; the server speaks first.
    pub fn new(options: HandshakeOptions) -> Self {
        let state = match parse_string(options.export.as_bytes()) {
            Ok(_) => State::Greeting,
            Err(error) => State::Failed(HandshakeError::ExportName(error)),
        };
        Self {
            options,
            input: Input::default(),
            output: VecDeque::new(),
            state,
            no_zeroes: false,
            structured_replies: false,
            meta_context: None,
            info: ExportInfo::default(),
        }
    }

    /// Takes what arrived. After an error, send what [`Self::poll_output`] still has, and close.
    pub fn handle_input(&mut self, input: Bytes) -> Result<(), HandshakeError> {
        self.input.push(input);
        loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// What is to be sent next.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.output.pop_front()
    }

    /// The export and its transmission, once, when the server agreed. Input that came after the
    /// handshake is already in the transmission: ask it for replies before feeding more.
    pub fn finish(&mut self) -> Option<(Export, Transmission)> {
        let State::Agreed(export) = &self.state else {
            return None;
        };
        let export = export.clone();
        self.state = State::Finished;
        let negotiated = Negotiated {
            structured_replies: self.structured_replies,
            base_allocation: self.meta_context.is_some(),
        };
        let input = std::mem::take(&mut self.input);
        let transmission = Transmission::new(&export, negotiated, self.meta_context, input);
        Some((export, transmission))
    }

    /// Goes one step on; `false` when more input is needed.
    fn step(&mut self) -> Result<bool, HandshakeError> {
        match &self.state {
            State::Greeting => self.read_greeting(),
            State::Option(option, replies) => self.read_reply(*option, *replies),
            State::ExportName => self.read_export_name_reply(),
            State::Agreed(_) | State::Finished => Ok(false),
            State::Failed(error) => Err(error.clone()),
        }
    }

    fn read_greeting(&mut self) -> Result<bool, HandshakeError> {
        let Some(magic) = self.input.peek().map(u64::from_be_bytes) else {
            return Ok(false);
        };
        if magic != NBD_MAGIC {
            return Err(HandshakeError::NotNbd(magic));
        }
        let Some(magics) = self.input.peek::<16>() else {
            return Ok(false);
        };
        match u64_at(&magics, 8) {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(HandshakeError::Oldstyle),
            magic => return Err(HandshakeError::UnknownStyle(magic)),
        }
        let Some(greeting) = self.input.take_array::<18>() else {
            return Ok(false);
        };
        let flags = u16_at(&greeting, 16);
        self.begin(HandshakeFlags::from_bits_truncate(flags));
        Ok(true)
    }

    /// Answers the greeting and asks for the first option.
    fn begin(&mut self, offered: HandshakeFlags) {
        let mut flags = ClientFlags::empty();
        flags.set(
            ClientFlags::FIXED_NEWSTYLE,
            offered.contains(HandshakeFlags::FIXED_NEWSTYLE),
        );
        flags.set(
            ClientFlags::NO_ZEROES,
            offered.contains(HandshakeFlags::NO_ZEROES),
        );
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.output
            .push_back(Bytes::copy_from_slice(&flags.bits().to_be_bytes()));
        if !flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            self.ask_export_name();
        } else if self.options.structured_replies {
            self.ask(OptionCode::STRUCTURED_REPLY, &[]);
        } else {
            self.ask_go();
        }
    }

    fn read_reply(&mut self, asked: OptionCode, replies: u32) -> Result<bool, HandshakeError> {
        let Some(bytes) = self.input.peek() else {
            return Ok(false);
        };
        let header = OptionReplyHeader::parse(&bytes).map_err(HandshakeError::ReplyMagic)?;
        let OptionReplyHeader {
            option,
            reply,
            length,
        } = header;
        if option != asked {
            return Err(HandshakeError::OtherOption {
                asked,
                answered: option,
            });
        }
        if length > MAX_REPLY_LENGTH {
            return Err(HandshakeError::ReplyLength {
                option,
                reply,
                length,
            });
        }
        if replies == MAX_REPLIES {
            return Err(HandshakeError::TooManyReplies {
                option,
                limit: MAX_REPLIES,
            });
        }
        let whole = OptionReplyHeader::LENGTH + length as usize;
        let Some(message) = self.input.take(whole) else {
            return Ok(false);
        };
        self.state = State::Option(option, replies + 1);
        self.handle_reply(&header, &message[OptionReplyHeader::LENGTH..])?;
        Ok(true)
    }

    fn handle_reply(
        &mut self,
        &OptionReplyHeader {
            option,
            reply,
            length,
        }: &OptionReplyHeader,
        data: &[u8],
    ) -> Result<(), HandshakeError> {
        let wrong_length = HandshakeError::ReplyLength {
            option,
            reply,
            length,
        };
        match (option, reply) {
            (_, reply) if reply.is_error() => return self.handle_refusal(option, reply, data),
            (_, OptionReplyCode::ACK) if length != 0 => return Err(wrong_length),
            (OptionCode::STRUCTURED_REPLY, OptionReplyCode::ACK) => {
                self.structured_replies = true;
                if self.options.base_allocation {
                    self.ask_meta_context();
                } else {
                    self.ask_go();
                }
            }
            (OptionCode::SET_META_CONTEXT, OptionReplyCode::META_CONTEXT) => {
                let (id, name) = data.split_first_chunk().ok_or(wrong_length)?;
                if parse_string(name)? == BASE_ALLOCATION {
                    self.meta_context = Some(u32::from_be_bytes(*id));
                }
            }
            (OptionCode::SET_META_CONTEXT, OptionReplyCode::ACK) => self.ask_go(),
            (OptionCode::GO, OptionReplyCode::INFO) => {
                self.info.add(data)?.then_some(()).ok_or(wrong_length)?;
            }
            (OptionCode::GO, OptionReplyCode::ACK) => {
                let info = std::mem::take(&mut self.info);
                let export = info.export(&self.options.export, self.structured_replies)?;
                self.state = State::Agreed(export);
            }
            _ => return Err(HandshakeError::UnexpectedReply { option, reply }),
        }
        Ok(())
    }

    /// Goes on without what was refused, or gives up where that cannot be.
    fn handle_refusal(
        &mut self,
        option: OptionCode,
        reply: OptionReplyCode,
        message: &[u8],
    ) -> Result<(), HandshakeError> {
        let hopeless = matches!(
            reply,
            OptionReplyCode::ERR_SHUTDOWN | OptionReplyCode::ERR_TLS_REQD
        );
        match option {
            OptionCode::STRUCTURED_REPLY if !hopeless => self.ask_go(),
            OptionCode::SET_META_CONTEXT if !hopeless => {
                self.meta_context = None;
                self.ask_go();
            }
            OptionCode::GO if reply == OptionReplyCode::ERR_UNSUP => self.ask_export_name(),
            _ => {
                self.send_option(OptionCode::ABORT, &[]);
                return Err(self.refusal(option, reply, display_text(message)));
            }
        }
        Ok(())
    }

    fn refusal(
        &self,
        option: OptionCode,
        reply: OptionReplyCode,
        message: String,
    ) -> HandshakeError {
        match (option, reply) {
            (OptionCode::GO, OptionReplyCode::ERR_UNKNOWN) => HandshakeError::UnknownExport {
                export: self.options.export.clone(),
                message,
            },
            _ => HandshakeError::Refused {
                option,
                reply,
                message,
            },
        }
    }

    fn read_export_name_reply(&mut self) -> Result<bool, HandshakeError> {
        let zeroes = if self.no_zeroes { 0 } else { RESERVED_ZEROES };
        if self.input.len() < ExportInfo::EXPORT_LENGTH + zeroes {
            return Ok(false);
        }
        let Some(reply) = self.input.take_array() else {
            return Ok(false);
        };
        self.input.skip(zeroes);
        let mut info = ExportInfo::default();
        info.set_export(&reply);
        let export = info.export(&self.options.export, self.structured_replies)?;
        self.state = State::Agreed(export);
        Ok(true)
    }

    fn ask_meta_context(&mut self) {
        let mut data = with_length(&self.options.export);
        data.extend_from_slice(&1u32.to_be_bytes());
        data.extend_from_slice(&with_length(BASE_ALLOCATION));
        self.ask(OptionCode::SET_META_CONTEXT, &data);
    }

    fn ask_go(&mut self) {
        let mut data = with_length(&self.options.export);
        data.extend_from_slice(&3u16.to_be_bytes());
        for info in [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE] {
            data.extend_from_slice(&info.0.to_be_bytes());
        }
        self.info = ExportInfo::default();
        self.ask(OptionCode::GO, &data);
    }

    fn ask_export_name(&mut self) {
        let name = self.options.export.clone();
        self.send_option(OptionCode::EXPORT_NAME, name.as_bytes());
        self.state = State::ExportName;
    }

    fn ask(&mut self, option: OptionCode, data: &[u8]) {
        self.send_option(option, data);
        self.state = State::Option(option, 0);
    }

    fn send_option(&mut self, option: OptionCode, data: &[u8]) {
        let header = OptionHeader {
            option,
            length: wire_length(data.len()),
        };
        self.output
            .push_back([&header.to_bytes()[..], data].concat().into());
    }
}
