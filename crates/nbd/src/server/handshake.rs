//! The server's handshake (proto.md, "Newstyle negotiation", "Fixed newstyle negotiation").
//!
//! A client that does not set `NBD_FLAG_C_FIXED_NEWSTYLE` may use the same options as any other:
//! "Client flags" allows it, and one that really is too old only sends NBD_OPT_EXPORT_NAME.
//!
//! TLS is either refused or required (proto.md, "TLS support": NOTLS and FORCEDTLS); whoever leaves
//! it to the client leaves it to whoever stands between them.

use bytes::Bytes;

use super::haggling::{Haggling, Tls, Verdict};
use super::{HandshakeError, Transmission};
use crate::export::Export;
use crate::input::Input;
use crate::wire::{ClientFlags, HandshakeFlags, NBD_MAGIC, OPTION_MAGIC, OptionCode, OptionHeader};

/// Bounds on what a client may ask before transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// How many options.
    pub options: u32,
    /// The longest data of an option that is kept, in bytes; longer ones are skipped and refused.
    pub option_length: u32,
    /// Bytes of all options together.
    pub total: u64,
}

impl Default for HandshakeLimits {
    /// 256 options, 64 KiB of data each, 4 MiB together.
    fn default() -> Self {
        Self {
            options: 256,
            option_length: 64 << 10,
            total: 4 << 20,
        }
    }
}

/// How haggling ended.
#[derive(Debug)]
pub enum HandshakeEvent {
    /// The client sent `NBD_OPT_ABORT`: close once the output is sent.
    Aborted,
    /// The client sent `NBD_OPT_STARTTLS`: TLS begins.
    StartTls(StartTls),
    /// Transmission begins. Input that came after the handshake is already in it: ask it for
    /// requests before feeding more.
    Transmission {
        /// The export that the client chose, with the flags that it was told.
        export: Export,
        /// Takes it from here.
        transmission: Transmission,
    },
}

/// What is to be done for `NBD_OPT_STARTTLS`, in this order.
#[derive(Debug)]
pub struct StartTls {
    /// The last bytes that are sent in the clear, after all output.
    pub acknowledgement: Bytes,
    /// Goes on inside of TLS. Of what was said before, it knows the client's flags alone.
    pub handshake: Handshake,
}

/// The handshake of a new connection, from the server's side.
#[derive(Debug)]
pub struct Handshake {
    limits: HandshakeLimits,
    input: Input,
    greeting: Option<Bytes>,
    haggling: Haggling,
    state: State,
    options: u32,
    total: u64,
}

#[derive(Debug)]
enum State {
    /// The client's flags are awaited.
    ClientFlags,
    /// An option is awaited.
    Option,
    /// The data of an option is awaited.
    Data(OptionHeader),
    /// The data of an option is too long, and dropped as it comes.
    Skip {
        option: OptionCode,
        remaining: usize,
    },
    /// The client aborted; to be fetched with `poll_event`.
    Aborted,
    /// The client is to be answered by TLS; to be fetched with `poll_event`.
    StartTls,
    /// The client chose this export; to be fetched with `poll_event`.
    Chosen(usize),
    /// It was fetched.
    Finished,
    /// The client broke the protocol.
    Failed(HandshakeError),
}

impl Handshake {
    /// Begins; the greeting is already waiting in [`Self::poll_output`]. TLS is refused.
    ///
    /// The first export is the default one, which the empty name asks for, unless another has the
    /// empty name. Names and descriptions are at most 4096 bytes long. Every export has
    /// `base:allocation`.
    pub fn new(exports: Vec<Export>, limits: HandshakeLimits) -> Self {
        Self::greet(Haggling::new(exports, Tls::Refused), limits)
    }

    /// The same, but all that the client gets without TLS is told to begin it.
    pub fn requiring_tls(exports: Vec<Export>, limits: HandshakeLimits) -> Self {
        Self::greet(Haggling::new(exports, Tls::Required), limits)
    }

    fn greet(haggling: Haggling, limits: HandshakeLimits) -> Self {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        let greeting = [
            &NBD_MAGIC.to_be_bytes()[..],
            &OPTION_MAGIC.to_be_bytes(),
            &flags.bits().to_be_bytes(),
        ]
        .concat();
        Self {
            limits,
            input: Input::default(),
            greeting: Some(greeting.into()),
            haggling,
            state: State::ClientFlags,
            options: 0,
            total: 0,
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
        self.greeting.take().or_else(|| self.haggling.poll_output())
    }

    /// How it ended, once.
    pub fn poll_event(&mut self) -> Option<HandshakeEvent> {
        let event = match self.state {
            State::Aborted => HandshakeEvent::Aborted,
            State::StartTls => HandshakeEvent::StartTls(StartTls {
                acknowledgement: Haggling::start_tls_acknowledgement(),
                handshake: Self {
                    limits: self.limits,
                    input: Input::default(),
                    greeting: None,
                    haggling: self.haggling.inside_tls(),
                    state: State::Option,
                    options: self.options,
                    total: self.total,
                },
            }),
            State::Chosen(index) => {
                let (export, negotiated) = self.haggling.agreement(index);
                let input = std::mem::take(&mut self.input);
                let transmission = Transmission::after_handshake(&export, negotiated, input);
                HandshakeEvent::Transmission {
                    export,
                    transmission,
                }
            }
            _ => return None,
        };
        self.state = State::Finished;
        Some(event)
    }

    /// Goes one step on; `false` when more input is needed, or none is wanted.
    fn step(&mut self) -> Result<bool, HandshakeError> {
        match &self.state {
            State::ClientFlags => self.read_client_flags(),
            State::Option => self.read_option(),
            State::Data(header) => self.read_data(*header),
            State::Skip { option, remaining } => self.skip_data(*option, *remaining),
            State::Chosen(_) => Ok(false),
            // Whoever put these bytes here was not known to be the client. They must not pass for something that came
            // over TLS.
            State::StartTls if self.input.len() > 0 => Err(HandshakeError::PlaintextAfterStartTls),
            State::StartTls => Ok(false),
            State::Aborted | State::Finished => {
                self.input.skip(usize::MAX);
                Ok(false)
            }
            State::Failed(error) => Err(error.clone()),
        }
    }

    fn read_client_flags(&mut self) -> Result<bool, HandshakeError> {
        let Some(bits) = self.input.take_array().map(u32::from_be_bytes) else {
            return Ok(false);
        };
        let flags = ClientFlags::from_bits(bits).ok_or(HandshakeError::ClientFlags(bits))?;
        self.haggling.set_client_flags(flags)?;
        self.state = State::Option;
        Ok(true)
    }

    fn read_option(&mut self) -> Result<bool, HandshakeError> {
        let Some(bytes) = self.input.take_array() else {
            return Ok(false);
        };
        let header = OptionHeader::parse(&bytes).map_err(HandshakeError::OptionMagic)?;
        self.options += 1;
        self.total += OptionHeader::LENGTH as u64 + u64::from(header.length);
        if self.options > self.limits.options {
            return Err(HandshakeError::TooManyOptions(self.limits.options));
        }
        if self.total > self.limits.total {
            return Err(HandshakeError::TooManyBytes(self.limits.total));
        }
        self.state = if header.length <= self.limits.option_length {
            State::Data(header)
        } else {
            State::Skip {
                option: header.option,
                remaining: header.length as usize,
            }
        };
        Ok(true)
    }

    fn read_data(&mut self, header: OptionHeader) -> Result<bool, HandshakeError> {
        let Some(data) = self.input.take(header.length as usize) else {
            return Ok(false);
        };
        self.handle_option(header.option, Some(&data))
    }

    fn skip_data(&mut self, option: OptionCode, remaining: usize) -> Result<bool, HandshakeError> {
        let remaining = remaining - self.input.skip(remaining);
        if remaining > 0 {
            self.state = State::Skip { option, remaining };
            return Ok(false);
        }
        self.handle_option(option, None)
    }

    fn handle_option(
        &mut self,
        option: OptionCode,
        data: Option<&[u8]>,
    ) -> Result<bool, HandshakeError> {
        self.state = match self.haggling.handle(option, data)? {
            Verdict::GoOn => State::Option,
            Verdict::Abort => State::Aborted,
            Verdict::StartTls => State::StartTls,
            Verdict::Choose(index) => State::Chosen(index),
        };
        Ok(true)
    }
}
