//! Puts replies on the wire (proto.md, "Simple reply message", "Structured reply types").

use bytes::Bytes;

use super::transmission::ReplyTo;
use crate::command::{Extent, Failure, Reply};
use crate::payload::Payload;
use crate::text::truncate;
use crate::wire::{
    ChunkFlags, ChunkHeader, ChunkType, CommandFlags, CommandType, Errno, MAX_EXTENTS,
    RequestHeader, SimpleReplyHeader, wire_length,
};

/// The number of the `base:allocation` metadata context in our sessions.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;

/// Appends a reply to `out`.
///
/// Where structured replies were negotiated, data and failures are sent as one chunk, and success
/// without data still as a simple reply, which is the shorter one.
pub(super) fn encode_reply(
    structured: bool,
    ReplyTo(request): ReplyTo,
    result: Result<Reply, Failure>,
    out: &mut Vec<Bytes>,
) {
    let answer = result.and_then(|reply| Answer::new(&request, reply));
    match answer {
        Ok(Answer::Done) => push_simple(request.cookie, 0, out),
        Ok(Answer::Data(data)) => {
            if structured {
                let prefix = request.offset.to_be_bytes();
                push_chunk(&request, ChunkType::OFFSET_DATA, &prefix, data.len(), out);
            } else {
                push_simple(request.cookie, 0, out);
            }
            out.extend(data);
        }
        Ok(Answer::Extents(extents)) => {
            let id = BASE_ALLOCATION_ID.to_be_bytes();
            let descriptors = extents.iter().flat_map(|extent| {
                [
                    extent.length.to_be_bytes(),
                    extent.flags.bits().to_be_bytes(),
                ]
                .concat()
            });
            let payload: Vec<u8> = id.into_iter().chain(descriptors).collect();
            push_chunk(&request, ChunkType::BLOCK_STATUS, &payload, 0, out);
        }
        Err(failure) if structured => push_error(&request, &failure, out),
        Err(failure) => push_simple(request.cookie, failure.errno.to_wire(), out),
    }
}

/// A reply that fits its request.
enum Answer {
    Done,
    Data(Payload),
    Extents(Vec<Extent>),
}

impl Answer {
    fn new(request: &RequestHeader, reply: Reply) -> Result<Self, Failure> {
        match (request.command, reply) {
            (CommandType::READ, Reply::Data(data)) if data.len() == request.length as usize => {
                Ok(Self::Data(data))
            }
            (CommandType::BLOCK_STATUS, Reply::BlockStatus(extents)) => {
                let extents = fit_extents(request, extents);
                if extents.is_empty() {
                    Err(misfit())
                } else {
                    Ok(Self::Extents(extents))
                }
            }
            (CommandType::READ | CommandType::BLOCK_STATUS, _) => Err(misfit()),
            (_, Reply::Done) => Ok(Self::Done),
            _ => Err(misfit()),
        }
    }
}

fn misfit() -> Failure {
    Failure::new(Errno::EIO, "the export's answer does not fit the request")
}

/// As many of the extents as may be sent: only the last may go beyond the end of the request, and
/// with `NBD_CMD_FLAG_REQ_ONE` there is one, which may not.
fn fit_extents(request: &RequestHeader, mut extents: Vec<Extent>) -> Vec<Extent> {
    let req_one = request.flags & CommandFlags::REQ_ONE.bits() != 0;
    extents.retain(|extent| extent.length > 0);
    let mut end = 0;
    let needed = extents.iter().take_while(|extent| {
        let begins_inside = end < u64::from(request.length);
        end += u64::from(extent.length);
        begins_inside
    });
    let limit = if req_one { 1 } else { MAX_EXTENTS };
    let needed = needed.count().min(limit);
    extents.truncate(needed);
    if req_one && let Some(only) = extents.first_mut() {
        only.length = only.length.min(request.length);
    }
    extents
}

fn push_simple(cookie: u64, error: u32, out: &mut Vec<Bytes>) {
    out.push(Bytes::copy_from_slice(
        &SimpleReplyHeader { error, cookie }.to_bytes(),
    ));
}

/// Appends the only chunk of a reply, without the last `following` bytes of its payload.
fn push_chunk(
    request: &RequestHeader,
    chunk: ChunkType,
    payload: &[u8],
    following: usize,
    out: &mut Vec<Bytes>,
) {
    let length = wire_length(payload.len() + following);
    let header = ChunkHeader {
        flags: ChunkFlags::DONE,
        chunk,
        cookie: request.cookie,
        length,
    };
    out.push([&header.to_bytes()[..], payload].concat().into());
}

fn push_error(request: &RequestHeader, failure: &Failure, out: &mut Vec<Bytes>) {
    let message = truncate(&failure.message);
    let mut payload = failure.errno.to_wire().to_be_bytes().to_vec();
    // At most MAX_STRING_LENGTH bytes, which 16 bits can count.
    payload.extend_from_slice(&wire_length(message.len()).to_be_bytes()[2..]);
    payload.extend_from_slice(message.as_bytes());
    push_chunk(request, ChunkType::ERROR, &payload, 0, out);
}
