//! Takes the server's byte stream apart and checks it against what was asked
//! (proto.md, "Simple reply message", "Structured reply chunk message").

use bytes::Bytes;
use foldhash::HashMap;

use super::pending::Pending;
use super::{ReplyEvent, TransmissionError};
use crate::input::Input;
use crate::wire::{
    CHUNK_MAGIC, ChunkFlags, ChunkHeader, ChunkType, CommandType, Errno, SIMPLE_REPLY_MAGIC,
    SimpleReplyHeader, u32_at, u64_at, wire_length,
};

/// The reading half of a transmission.
#[derive(Debug)]
pub(super) struct Replies {
    size: u64,
    structured: bool,
    meta_context: Option<u32>,
    pending: HashMap<u64, Pending>,
    input: Input,
    state: State,
    failed: Option<TransmissionError>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The next reply is awaited.
    Header,
    /// The offset of a data chunk is awaited.
    DataOffset(ChunkHeader),
    /// Bytes of a READ are passed on as they come.
    Data(Data),
    /// The payload of a chunk other than data is awaited.
    Payload(ChunkHeader),
    /// A reply is complete.
    Finish { cookie: u64 },
}

/// Bytes of a READ that are still to come.
#[derive(Debug, Clone, Copy)]
struct Data {
    cookie: u64,
    offset: u64,
    remaining: u32,
    /// Whether the reply ends with them.
    done: bool,
    /// Whether it does, and succeeds.
    certain: bool,
}

/// What a step came to: perhaps an event, and how it goes on. `None`: more input is needed.
type Step = Result<Option<(Option<ReplyEvent>, State)>, TransmissionError>;

impl Replies {
    pub(super) fn new(
        size: u64,
        structured: bool,
        meta_context: Option<u32>,
        input: Input,
    ) -> Self {
        let (pending, state) = (HashMap::default(), State::Header);
        Self {
            size,
            structured,
            meta_context,
            pending,
            input,
            state,
            failed: None,
        }
    }

    /// Waits for the reply to `cookie`; `false` if one is being waited for already.
    pub(super) fn expect(&mut self, cookie: u64, request: Pending) -> bool {
        let free = !self.pending.contains_key(&cookie);
        if free {
            self.pending.insert(cookie, request);
        }
        free
    }

    pub(super) fn outstanding(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn handle_input(&mut self, input: Bytes) {
        self.input.push(input);
    }

    pub(super) fn poll(&mut self) -> Result<Option<ReplyEvent>, TransmissionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let polled = self.read_event();
        self.failed = polled.as_ref().err().cloned();
        polled
    }

    fn read_event(&mut self) -> Result<Option<ReplyEvent>, TransmissionError> {
        while let Some((event, next)) = self.step()? {
            self.state = next;
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn step(&mut self) -> Step {
        match self.state {
            State::Header => match self.input.peek().map(u32::from_be_bytes) {
                None => Ok(None),
                Some(SIMPLE_REPLY_MAGIC) => self.read_simple_reply(),
                Some(CHUNK_MAGIC) => self.read_chunk_header(),
                Some(magic) => Err(TransmissionError::Magic(magic)),
            },
            State::DataOffset(header) => self.read_data_offset(&header),
            State::Data(data) => Ok(self.read_data(data)),
            State::Payload(header) => self.read_payload(&header),
            State::Finish { cookie } => self.finish(cookie),
        }
    }

    fn read_simple_reply(&mut self) -> Step {
        let Some(bytes) = self.input.take_array() else {
            return Ok(None);
        };
        let header = SimpleReplyHeader::parse(&bytes).map_err(TransmissionError::Magic)?;
        let SimpleReplyHeader { error, cookie } = header;
        let structured = self.structured;
        let request = self.request(cookie)?;
        let next = match request.command {
            CommandType::READ if structured => {
                return Err(TransmissionError::SimpleReply(CommandType::READ));
            }
            _ if error != 0 => {
                request.fail(Errno::from_wire(error));
                State::Finish { cookie }
            }
            CommandType::READ => {
                let (offset, remaining) = (request.offset, request.length);
                request.add_content(ChunkType::OFFSET_DATA, offset, remaining)?;
                State::Data(Data {
                    cookie,
                    offset,
                    remaining,
                    done: true,
                    certain: true,
                })
            }
            CommandType::BLOCK_STATUS => {
                return Err(TransmissionError::SimpleReply(CommandType::BLOCK_STATUS));
            }
            _ => State::Finish { cookie },
        };
        Ok(Some((None, next)))
    }

    fn read_chunk_header(&mut self) -> Step {
        if !self.structured {
            return Err(TransmissionError::NotNegotiated);
        }
        let Some(bytes) = self.input.take_array() else {
            return Ok(None);
        };
        let header = ChunkHeader::parse(&bytes).map_err(TransmissionError::Magic)?;
        self.request(header.cookie)?.check_header(&header)?;
        let next = match header.chunk {
            ChunkType::NONE if !is_done(&header) => return Err(TransmissionError::NoneNotDone),
            ChunkType::NONE => State::Finish {
                cookie: header.cookie,
            },
            ChunkType::OFFSET_DATA => State::DataOffset(header),
            _ => State::Payload(header),
        };
        Ok(Some((None, next)))
    }

    fn read_data_offset(&mut self, header: &ChunkHeader) -> Step {
        let Some(offset) = self.input.take_array().map(u64::from_be_bytes) else {
            return Ok(None);
        };
        let &ChunkHeader {
            cookie,
            chunk,
            length,
            ..
        } = header;
        let remaining = length - 8;
        let request = self.request(cookie)?;
        request.add_content(chunk, offset, remaining)?;
        let done = is_done(header);
        let data = Data {
            cookie,
            offset,
            remaining,
            done,
            certain: done && request.has_succeeded(),
        };
        Ok(Some((None, State::Data(data))))
    }

    fn read_data(&mut self, data: Data) -> Option<(Option<ReplyEvent>, State)> {
        let Data {
            cookie,
            offset,
            remaining,
            done,
            certain,
        } = data;
        let bytes = self.input.take_some(remaining as usize);
        if bytes.is_empty() {
            return None;
        }
        let rest = remaining - wire_length(bytes.len());
        let next = match (rest, done) {
            (0, true) => State::Finish { cookie },
            (0, false) => State::Header,
            _ => State::Data(Data {
                offset: offset + bytes.len() as u64,
                remaining: rest,
                ..data
            }),
        };
        Some((
            Some(ReplyEvent::Data {
                cookie,
                offset,
                data: bytes,
                certain,
            }),
            next,
        ))
    }

    fn read_payload(&mut self, header: &ChunkHeader) -> Step {
        let Some(payload) = self.input.take(header.length as usize) else {
            return Ok(None);
        };
        let &ChunkHeader { cookie, chunk, .. } = header;
        let (size, context) = (self.size, self.meta_context);
        let request = self.request(cookie)?;
        let event = match chunk {
            ChunkType::OFFSET_HOLE => {
                let (offset, length) = parse_hole(header, &payload)?;
                request.add_content(chunk, offset, length)?;
                Some(ReplyEvent::Hole {
                    cookie,
                    offset,
                    length,
                })
            }
            ChunkType::BLOCK_STATUS => {
                let extents = request.add_status(&payload, context, size)?;
                Some(ReplyEvent::BlockStatus { cookie, extents })
            }
            error => {
                request.add_error(error, &payload)?;
                None
            }
        };
        let next = if is_done(header) {
            State::Finish { cookie }
        } else {
            State::Header
        };
        Ok(Some((event, next)))
    }

    fn finish(&mut self, cookie: u64) -> Step {
        let request = self.pending.remove(&cookie);
        let result = request
            .ok_or(TransmissionError::UnknownCookie(cookie))?
            .finish()?;
        Ok(Some((
            Some(ReplyEvent::Done { cookie, result }),
            State::Header,
        )))
    }

    fn request(&mut self, cookie: u64) -> Result<&mut Pending, TransmissionError> {
        self.pending
            .get_mut(&cookie)
            .ok_or(TransmissionError::UnknownCookie(cookie))
    }
}

fn is_done(header: &ChunkHeader) -> bool {
    header.flags.contains(ChunkFlags::DONE)
}

/// Offset and length of a hole.
fn parse_hole(header: &ChunkHeader, payload: &[u8]) -> Result<(u64, u32), TransmissionError> {
    let &ChunkHeader { chunk, length, .. } = header;
    let payload: &[u8; 12] = payload
        .try_into()
        .map_err(|_| TransmissionError::ChunkLength { chunk, length })?;
    match u32_at(payload, 8) {
        0 => Err(TransmissionError::EmptyExtent),
        length => Ok((u64_at(payload, 0), length)),
    }
}
