/** @module */

import {
  BASE_ALLOCATION,
  BlockSize,
  blockStatusChunk,
  Command,
  CommandFlag,
  dataChunk,
  doneChunk,
  Errno,
  errorChunk,
  ProtocolError,
  REQUEST_LENGTH,
  REQUEST_MAGIC,
  simpleReply,
  viewOf,
} from "./protocol.js";

/** @typedef {import("./bytes.js").ByteQueue} ByteQueue */
/** @typedef {import("./handshake.js").Negotiated} Negotiated */

/**
 * @typedef {object} Request
 * @property {bigint} cookie the client's, opaque
 * @property {number} type Command; never DISC
 * @property {number} offset bytes; inside the image unless refused
 * @property {number} length bytes; `offset + length` is at most the image's size unless refused
 * @property {Refusal | null} refusal why it can only be answered with an error
 */

/**
 * @typedef {object} Refusal
 * @property {number} errno Errno
 * @property {string} message for people
 */

/** @typedef {{type: "request", request: Request} | {type: "disconnect"}} Incoming */

/**
 * The flags that each command may carry once replies are structured. FUA was never offered.
 *
 * @type {Map<number, number>}
 */
const FLAGS = new Map([
  [Command.READ, CommandFlag.DF],
  [Command.FLUSH, 0],
  [Command.CACHE, 0],
  [Command.BLOCK_STATUS, CommandFlag.REQ_ONE],
]);

/** @type {Set<number>} */
const WRITES = new Set([Command.WRITE, Command.TRIM, Command.WRITE_ZEROES]);

/** The server's side of NBD's transmission phase for a read-only image, without I/O. */
export class Transmission {
  #size;
  #structured;
  #allocation;
  /** @type {Request | null} a WRITE whose payload is not all here */
  #write = null;
  /** Bytes of its payload that are still to come. */
  #payloadLeft = 0;

  /**
   * @param {number} size of the image in bytes
   * @param {Negotiated} negotiated
   */
  constructor(size, negotiated) {
    this.#size = size;
    this.#structured = negotiated.structured;
    this.#allocation = negotiated.allocation;
  }

  /**
   * @param {ByteQueue} input
   * @returns {Incoming | null} null: more input is needed. After "disconnect" nothing may follow
   * @throws {ProtocolError}
   */
  next(input) {
    if (this.#write !== null) {
      return this.#writeOnceWhole(input, this.#write);
    }
    const bytes = input.take(REQUEST_LENGTH);
    if (bytes === null) {
      return null;
    }
    const view = viewOf(bytes);
    const magic = view.getUint32(0);
    if (magic !== REQUEST_MAGIC) {
      throw new ProtocolError(`a request that begins with 0x${magic.toString(16)}`);
    }
    const type = view.getUint16(6);
    if (type === Command.DISC) {
      return { type: "disconnect" };
    }
    const length = view.getUint32(24);
    const cookie = view.getBigUint64(8);
    // Above 2^53 this is not exact, and need not be: no image reaches so far.
    const offset = view.getUint32(16) * 2 ** 32 + view.getUint32(20);
    const refusal = this.#refusal(type, view.getUint16(4), offset, length);
    const request = { cookie, type, offset, length, refusal };
    if (type === Command.WRITE) {
      this.#payloadLeft = length;
      return this.#writeOnceWhole(input, request);
    }
    return { type: "request", request };
  }

  /**
   * Clients don't expect the answer to a WRITE that they are still sending, refused or not.
   *
   * @param {ByteQueue} input
   * @param {Request} write
   * @returns {Incoming | null}
   */
  #writeOnceWhole(input, write) {
    this.#payloadLeft -= input.discard(this.#payloadLeft);
    this.#write = this.#payloadLeft > 0 ? write : null;
    return this.#write === null ? { type: "request", request: write } : null;
  }

  /**
   * @param {number} type
   * @param {number} flags
   * @param {number} offset
   * @param {number} length
   * @returns {Refusal | null}
   */
  #refusal(type, flags, offset, length) {
    if (WRITES.has(type)) {
      return { errno: Errno.EPERM, message: "the image is read-only" };
    }
    const allowed = FLAGS.get(type);
    if (allowed === undefined) {
      return invalid(`unknown command ${type}`);
    }
    const offered = this.#structured ? allowed : 0;
    if ((flags & ~offered) !== 0) {
      return invalid(`flags 0x${flags.toString(16)} do not fit command ${type}`);
    }
    if (type === Command.FLUSH) {
      return offset === 0 && length === 0 ? null : invalid("a flush has no range");
    }
    if (offset > this.#size - length) {
      return invalid(`the image ends at byte ${this.#size}`);
    }
    if (type === Command.BLOCK_STATUS) {
      return this.#refuseBlockStatus(length);
    }
    return type === Command.READ ? this.#refuseRead(length) : null;
  }

  /** @param {number} length */
  #refuseBlockStatus(length) {
    if (!this.#allocation) {
      return invalid("no metadata context was negotiated");
    }
    return length === 0 ? invalid("the status of nothing") : null;
  }

  /** @param {number} length */
  #refuseRead(length) {
    if (length <= BlockSize.MAXIMUM) {
      return null;
    }
    // EOVERFLOW is defined where structured replies are, and nowhere else.
    const errno = this.#structured ? Errno.EOVERFLOW : Errno.EINVAL;
    return { errno, message: `a read has at most ${BlockSize.MAXIMUM} bytes` };
  }

  /**
   * @param {Request} request a READ
   * @param {Uint8Array[]} parts its bytes, in order, `request.length` altogether
   * @returns {Uint8Array[]} what is to be sent: the header, then the parts as they are
   */
  data(request, parts) {
    if (!this.#structured) {
      return [simpleReply(request.cookie, 0), ...parts];
    }
    if (request.length === 0) {
      return [doneChunk(request.cookie)];
    }
    return [dataChunk(request.cookie, request.offset, request.length), ...parts];
  }

  /**
   * @param {Request} request a BLOCK_STATUS
   * @returns {Uint8Array[]}
   */
  blockStatus(request) {
    return [blockStatusChunk(request.cookie, BASE_ALLOCATION.id, request.length)];
  }

  /**
   * @param {Request} request a FLUSH or CACHE
   * @returns {Uint8Array[]}
   */
  done(request) {
    return [this.#structured ? doneChunk(request.cookie) : simpleReply(request.cookie, 0)];
  }

  /**
   * @param {Request} request
   * @param {number} errno
   * @param {string} message reaches the client where replies are structured
   * @returns {Uint8Array[]}
   */
  error(request, errno, message) {
    const { cookie } = request;
    return [this.#structured ? errorChunk(cookie, errno, message) : simpleReply(cookie, errno)];
  }
}

/**
 * @param {string} message
 * @returns {Refusal}
 */
function invalid(message) {
  return { errno: Errno.EINVAL, message };
}
