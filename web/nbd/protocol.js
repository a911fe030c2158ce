/**
 * The words of NBD: constants by the names that its document gives them, and the encoding of each
 * message that a server sends. Nothing here keeps state.
 *
 * Reference: doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
 * All integers are big-endian. BigInt appears here only, where 64 bits meet the wire.
 *
 * @module
 */

/** ASCII "NBDMAGIC", the first eight bytes of every server. */
export const NBD_MAGIC = 0x4e42444d41474943n;
/** ASCII "IHAVEOPT", before the handshake flags and before each option. */
export const IHAVEOPT = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x3e889045565a9n;

export const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** Server to client, 16 bits ("Handshake flags"). */
export const HandshakeFlag = Object.freeze({ FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 });

/** Client to server, 32 bits ("Client flags"). */
export const ClientFlag = Object.freeze({ FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 });

/** What an export can do ("Transmission flags"). */
export const TransmissionFlag = Object.freeze({
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_DF: 1 << 7,
  SEND_CACHE: 1 << 10,
});

/** NBD_OPT_* */
export const Option = Object.freeze({
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
});

/** NBD_REP_*; errors have bit 31 set. */
export const OptionReply = Object.freeze({
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_INVALID: 0x80000003,
  ERR_UNKNOWN: 0x80000006,
  ERR_TOO_BIG: 0x80000009,
});

/** NBD_INFO_* */
export const Info = Object.freeze({ EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 });

/** NBD_CMD_* */
export const Command = Object.freeze({
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
});

/** NBD_CMD_FLAG_* */
export const CommandFlag = Object.freeze({ DF: 1 << 2, REQ_ONE: 1 << 3 });

const ReplyFlag = Object.freeze({ DONE: 1 << 0 });

const ReplyType = Object.freeze({ NONE: 0, OFFSET_DATA: 1, BLOCK_STATUS: 5, ERROR: 0x8001 });

/** NBD_E*: the error values that the protocol allows and that a read-only server needs. */
export const Errno = Object.freeze({ EPERM: 1, EIO: 5, EINVAL: 22, EOVERFLOW: 75 });

/** Bytes of a request without its payload. */
export const REQUEST_LENGTH = 28;

/** Longest string, in bytes of UTF-8 ("Conventions"). */
export const MAX_STRING_LENGTH = 4096;

/** The protocol's default size constraints, in bytes ("Size constraints"). */
export const BlockSize = Object.freeze({ MINIMUM: 1, PREFERRED: 4096, MAXIMUM: 32 * 1024 * 1024 });

/** The one metadata context that is served, and the number that we give it. */
export const BASE_ALLOCATION = Object.freeze({ name: "base:allocation", id: 1 });

/** The peer broke a rule of the protocol, so nothing that follows can be understood. */
export class ProtocolError extends Error {
  /** @param {string} message which rule, and what was sent */
  constructor(message) {
    super(message);
    this.name = "ProtocolError";
  }
}

const encoder = new TextEncoder();

/**
 * @param {string} text
 * @returns {Uint8Array<ArrayBuffer>} UTF-8
 */
export function encodeText(text) {
  return encoder.encode(text);
}

/**
 * @param {Uint8Array} bytes
 * @returns {DataView}
 */
export function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * @param {number} length bytes
 * @param {(view: DataView) => void} fill
 * @returns {Uint8Array<ArrayBuffer>}
 */
function message(length, fill) {
  const bytes = new Uint8Array(length);
  fill(new DataView(bytes.buffer));
  return bytes;
}

/** @returns {Uint8Array<ArrayBuffer>} what a fixed newstyle server says first */
export function greeting() {
  return message(18, (view) => {
    view.setBigUint64(0, NBD_MAGIC);
    view.setBigUint64(8, IHAVEOPT);
    view.setUint16(16, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES);
  });
}

/**
 * @param {number} option the option that is answered
 * @param {number} type NBD_REP_*
 * @param {Uint8Array} [data]
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function optionReply(option, type, data = new Uint8Array(0)) {
  const reply = message(20 + data.length, (view) => {
    view.setBigUint64(0, OPTION_REPLY_MAGIC);
    view.setUint32(8, option);
    view.setUint32(12, type);
    view.setUint32(16, data.length);
  });
  reply.set(data, 20);
  return reply;
}

/**
 * The answer to NBD_OPT_EXPORT_NAME, which is no option reply.
 *
 * @param {number} size bytes
 * @param {number} flags TransmissionFlag bits
 * @param {boolean} zeroes whether the client wants the 124 reserved bytes
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function exportReply(size, flags, zeroes) {
  return message(zeroes ? 10 + 124 : 10, (view) => {
    view.setBigUint64(0, BigInt(size));
    view.setUint16(8, flags);
  });
}

/**
 * @param {number} size bytes
 * @param {number} flags TransmissionFlag bits
 * @returns {Uint8Array<ArrayBuffer>} data of an NBD_REP_INFO
 */
export function infoExport(size, flags) {
  return message(12, (view) => {
    view.setUint16(0, Info.EXPORT);
    view.setBigUint64(2, BigInt(size));
    view.setUint16(10, flags);
  });
}

/** @returns {Uint8Array<ArrayBuffer>} data of an NBD_REP_INFO */
export function infoBlockSize() {
  return message(14, (view) => {
    view.setUint16(0, Info.BLOCK_SIZE);
    view.setUint32(2, BlockSize.MINIMUM);
    view.setUint32(6, BlockSize.PREFERRED);
    view.setUint32(10, BlockSize.MAXIMUM);
  });
}

/**
 * @param {number} type Info.NAME or Info.DESCRIPTION
 * @param {string} text
 * @returns {Uint8Array<ArrayBuffer>} data of an NBD_REP_INFO
 */
export function infoText(type, text) {
  const string = encodeText(text);
  const info = message(2 + string.length, (view) => view.setUint16(0, type));
  info.set(string, 2);
  return info;
}

/**
 * @param {string} name
 * @param {string} description
 * @returns {Uint8Array<ArrayBuffer>} data of an NBD_REP_SERVER
 */
export function serverEntry(name, description) {
  const nameBytes = encodeText(name);
  const descriptionBytes = encodeText(description);
  const entry = message(4 + nameBytes.length + descriptionBytes.length, (view) =>
    view.setUint32(0, nameBytes.length),
  );
  entry.set(nameBytes, 4);
  entry.set(descriptionBytes, 4 + nameBytes.length);
  return entry;
}

/**
 * @param {number} id 0 when listed, the context's number when selected
 * @param {string} name
 * @returns {Uint8Array<ArrayBuffer>} data of an NBD_REP_META_CONTEXT
 */
export function metaContext(id, name) {
  const nameBytes = encodeText(name);
  const context = message(4 + nameBytes.length, (view) => view.setUint32(0, id));
  context.set(nameBytes, 4);
  return context;
}

/**
 * @param {bigint} cookie
 * @param {number} errno 0 for success
 * @returns {Uint8Array<ArrayBuffer>} what comes before a simple reply's payload
 */
export function simpleReply(cookie, errno) {
  return message(16, (view) => {
    view.setUint32(0, SIMPLE_REPLY_MAGIC);
    view.setUint32(4, errno);
    view.setBigUint64(8, cookie);
  });
}

/**
 * @param {bigint} cookie
 * @param {number} type ReplyType
 * @param {number} length bytes of the chunk's whole payload
 * @param {number} included how many bytes of that payload `fill` writes; the rest is sent after
 * @param {(view: DataView) => void} fill sees the payload's beginning at offset 20
 * @returns {Uint8Array<ArrayBuffer>} the reply's only, hence last, chunk
 */
function lastChunk(cookie, type, length, included, fill) {
  return message(20 + included, (view) => {
    view.setUint32(0, STRUCTURED_REPLY_MAGIC);
    view.setUint16(4, ReplyFlag.DONE);
    view.setUint16(6, type);
    view.setBigUint64(8, cookie);
    view.setUint32(16, length);
    fill(view);
  });
}

/**
 * @param {bigint} cookie
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function doneChunk(cookie) {
  return lastChunk(cookie, ReplyType.NONE, 0, 0, () => {});
}

/**
 * @param {bigint} cookie
 * @param {number} offset of the data in the image
 * @param {number} length bytes of data, which the caller sends next; at least 1
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function dataChunk(cookie, offset, length) {
  return lastChunk(cookie, ReplyType.OFFSET_DATA, 8 + length, 8, (view) =>
    view.setBigUint64(20, BigInt(offset)),
  );
}

/**
 * @param {bigint} cookie
 * @param {number} contextId
 * @param {number} length bytes of the one extent, which is plain data (status flags 0)
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function blockStatusChunk(cookie, contextId, length) {
  return lastChunk(cookie, ReplyType.BLOCK_STATUS, 12, 12, (view) => {
    view.setUint32(20, contextId);
    view.setUint32(24, length);
    view.setUint32(28, 0);
  });
}

/**
 * @param {bigint} cookie
 * @param {number} errno
 * @param {string} text for people, at most 4,096 bytes
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function errorChunk(cookie, errno, text) {
  const string = encodeText(text).subarray(0, MAX_STRING_LENGTH);
  const length = 6 + string.length;
  const chunk = lastChunk(cookie, ReplyType.ERROR, length, length, (view) => {
    view.setUint32(20, errno);
    view.setUint16(24, string.length);
  });
  chunk.set(string, 26);
  return chunk;
}
