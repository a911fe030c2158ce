//! Bytes as proto.md writes them, put together without the crate's own encoders.

use bytes::Bytes;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const REP_ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const REP_ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_FLUSH: u16 = 3;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_CACHE: u16 = 5;
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

pub(crate) const DONE: u16 = 1;
pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;
pub(crate) const CHUNK_STATUS: u16 = 5;
pub(crate) const CHUNK_ERROR: u16 = 0x8001;
pub(crate) const CHUNK_ERROR_OFFSET: u16 = 0x8002;

/// A server's greeting with these handshake flags.
pub(crate) fn greeting(flags: u16) -> Vec<u8> {
    [b"NBDMAGICIHAVEOPT", &flags.to_be_bytes()[..]].concat()
}

/// An option with its data.
pub(crate) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &code.to_be_bytes()[..], &length(data), data].concat()
}

/// A reply to an option.
pub(crate) fn reply(option: u32, code: u32, data: &[u8]) -> Vec<u8> {
    let magic = b"\x00\x03\xe8\x89\x04\x55\x65\xa9";
    [
        magic,
        &option.to_be_bytes()[..],
        &code.to_be_bytes(),
        &length(data),
        data,
    ]
    .concat()
}

/// The data of NBD_OPT_INFO and NBD_OPT_GO.
pub(crate) fn info_request(name: &str, infos: &[u16]) -> Vec<u8> {
    let count = u16::try_from(infos.len()).unwrap();
    let infos: Vec<u8> = infos.iter().flat_map(|info| info.to_be_bytes()).collect();
    [&string(name), &count.to_be_bytes()[..], &infos].concat()
}

/// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
pub(crate) fn meta_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [&string(name), &count.to_be_bytes()[..], &queries].concat()
}

/// The data of NBD_REP_META_CONTEXT.
pub(crate) fn meta_context(id: u32) -> Vec<u8> {
    [&id.to_be_bytes(), &b"base:allocation"[..]].concat()
}

/// The data of NBD_REP_INFO with NBD_INFO_EXPORT.
pub(crate) fn info_export(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0], &size.to_be_bytes()[..], &flags.to_be_bytes()].concat()
}

/// The data of NBD_REP_INFO with NBD_INFO_BLOCK_SIZE.
pub(crate) fn info_block_size(sizes: [u32; 3]) -> Vec<u8> {
    [&[0, 3], &sizes.map(u32::to_be_bytes).concat()[..]].concat()
}

/// A string with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&length(text.as_bytes()), text.as_bytes()].concat()
}

/// The header of a request.
pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        b"\x25\x60\x95\x13",
        &flags.to_be_bytes()[..],
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A simple reply without data.
pub(crate) fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [
        b"\x67\x44\x66\x98",
        &error.to_be_bytes()[..],
        &cookie.to_be_bytes(),
    ]
    .concat()
}

/// A chunk of a structured reply.
pub(crate) fn chunk(flags: u16, chunk: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    [
        &chunk_header(flags, chunk, cookie, u32::try_from(payload.len()).unwrap()),
        payload,
    ]
    .concat()
}

/// The header of a chunk, whatever follows.
pub(crate) fn chunk_header(flags: u16, chunk: u16, cookie: u64, length: u32) -> Vec<u8> {
    [
        b"\x66\x8e\x33\xef",
        &flags.to_be_bytes()[..],
        &chunk.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// The payload of NBD_REPLY_TYPE_OFFSET_DATA.
pub(crate) fn data_at(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), data].concat()
}

/// The payload of NBD_REPLY_TYPE_OFFSET_HOLE.
pub(crate) fn hole_at(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

/// The payload of NBD_REPLY_TYPE_BLOCK_STATUS.
pub(crate) fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let extents = extents.iter().flat_map(|&(length, flags)| [length, flags]);
    std::iter::once(context)
        .chain(extents)
        .flat_map(u32::to_be_bytes)
        .collect()
}

/// The payload of NBD_REPLY_TYPE_ERROR.
pub(crate) fn error(errno: u32, message: &str) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    [
        &errno.to_be_bytes()[..],
        &length.to_be_bytes(),
        message.as_bytes(),
    ]
    .concat()
}

/// The payload of NBD_REPLY_TYPE_ERROR_OFFSET.
pub(crate) fn error_at(errno: u32, message: &str, offset: u64) -> Vec<u8> {
    [error(errno, message), offset.to_be_bytes().to_vec()].concat()
}

fn length(data: &[u8]) -> [u8; 4] {
    u32::try_from(data.len()).unwrap().to_be_bytes()
}

/// `stream` in one piece, in single bytes, and cut in two at every place.
pub(crate) fn splits(stream: &[u8]) -> impl Iterator<Item = Vec<Bytes>> {
    let pieces = |parts: &[&[u8]]| {
        parts
            .iter()
            .map(|part| Bytes::copy_from_slice(part))
            .collect()
    };
    let single: Vec<Bytes> = stream.chunks(1).map(Bytes::copy_from_slice).collect();
    let halves = (0..=stream.len()).map(move |at| {
        let (left, right) = stream.split_at(at);
        pieces(&[left, right])
    });
    std::iter::once(single).chain(halves)
}
