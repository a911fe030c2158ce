// The client's side of NBD, just enough to talk to nbd.js and to look at each field of its answers.

import { IHAVEOPT, REQUEST_MAGIC, viewOf } from "../../nbd/protocol.js";

/** @param {...(Uint8Array | string)} parts bytes, or hexadecimal digits with any spaces */
export function bytes(...parts) {
  return new Uint8Array(
    Buffer.concat(
      parts.map((part) =>
        typeof part === "string" ? Buffer.from(part.replaceAll(/\s/g, ""), "hex") : part,
      ),
    ),
  );
}

/** @param {string} string */
export function text(string) {
  return new TextEncoder().encode(string);
}

/** @param {number} value */
export function u16(value) {
  const result = new Uint8Array(2);
  viewOf(result).setUint16(0, value);
  return result;
}

/** @param {number} value */
export function u32(value) {
  const result = new Uint8Array(4);
  viewOf(result).setUint32(0, value);
  return result;
}

/** @param {bigint | number} value */
export function u64(value) {
  const result = new Uint8Array(8);
  viewOf(result).setBigUint64(0, BigInt(value));
  return result;
}

/** Both of them: fixed newstyle, no zeroes. */
export const CLIENT_FLAGS = u32(3);

/**
 * @param {number} code
 * @param {Uint8Array} [data]
 */
export function option(code, data = new Uint8Array(0)) {
  return bytes(u64(IHAVEOPT), u32(code), u32(data.length), data);
}

/**
 * @param {string} name
 * @param {number[]} [infos]
 */
export function goData(name, infos = []) {
  return bytes(u32(text(name).length), text(name), u16(infos.length), ...infos.map(u16));
}

/**
 * @param {string} name
 * @param {string[]} queries
 */
export function contextData(name, queries) {
  const encoded = queries.map((query) => bytes(u32(text(query).length), text(query)));
  return bytes(u32(text(name).length), text(name), u32(queries.length), ...encoded);
}

/**
 * @param {object} fields
 * @param {number} fields.type
 * @param {bigint | number} [fields.offset]
 * @param {number} [fields.length]
 * @param {number} [fields.flags]
 * @param {bigint | number} [fields.cookie]
 */
export function request({ type, offset = 0, length = 0, flags = 0, cookie = 1 }) {
  return bytes(u32(REQUEST_MAGIC), u16(flags), u16(type), u64(cookie), u64(offset), u32(length));
}

/** Takes what a server sent apart, field by field. */
export class Reader {
  #bytes;
  #at = 0;

  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.#bytes = bytes;
  }

  get left() {
    return this.#bytes.length - this.#at;
  }

  /** @param {number} count */
  take(count) {
    if (count > this.left) {
      throw new RangeError(`${count} bytes wanted, ${this.left} left`);
    }
    this.#at += count;
    return this.#bytes.subarray(this.#at - count, this.#at);
  }

  u16() {
    return viewOf(this.take(2)).getUint16(0);
  }

  u32() {
    return viewOf(this.take(4)).getUint32(0);
  }

  u64() {
    return viewOf(this.take(8)).getBigUint64(0);
  }

  /** The server's first 18 bytes. */
  greeting() {
    return { magic: this.u64(), option: this.u64(), flags: this.u16() };
  }

  optionReply() {
    const magic = this.u64();
    const option = this.u32();
    const type = this.u32();
    return { magic, option, type, data: this.take(this.u32()) };
  }

  optionReplies() {
    const replies = [];
    while (this.left > 0) {
      replies.push(this.optionReply());
    }
    return replies;
  }

  simpleReply() {
    const magic = this.u32();
    const errno = this.u32();
    return { magic, errno, cookie: this.u64() };
  }

  chunk() {
    const magic = this.u32();
    const flags = this.u16();
    const type = this.u16();
    const cookie = this.u64();
    return { magic, flags, type, cookie, data: this.take(this.u32()) };
  }
}

/**
 * @param {Uint8Array} data of an NBD_REPLY_TYPE_ERROR chunk
 */
export function errorOf(data) {
  const reader = new Reader(data);
  const errno = reader.u32();
  return { errno, message: new TextDecoder().decode(reader.take(reader.u16())) };
}
