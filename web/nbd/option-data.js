/** @module */

import { MAX_STRING_LENGTH, viewOf } from "./protocol.js";

/** An option whose data contradicts itself. It is refused; the handshake goes on. */
export class InvalidOption extends Error {}

/** Reads an option's data field by field. What is missing or too much makes the option invalid. */
export class Fields {
  #bytes;
  #view;
  #at = 0;

  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
  }

  uint16() {
    return this.#view.getUint16(this.#advance(2));
  }

  uint32() {
    return this.#view.getUint32(this.#advance(4));
  }

  /** @param {number} length bytes */
  string(length) {
    if (length > MAX_STRING_LENGTH) {
      throw new InvalidOption(`strings have at most ${MAX_STRING_LENGTH} bytes`);
    }
    const start = this.#advance(length);
    return this.#bytes.slice(start, start + length);
  }

  /** All that is left. */
  rest() {
    return this.string(this.#bytes.length - this.#at);
  }

  /** Nothing may be left. */
  end() {
    if (this.#at !== this.#bytes.length) {
      throw new InvalidOption("more data than the option has");
    }
  }

  /** @param {number} count */
  #advance(count) {
    const start = this.#at;
    if (start + count > this.#bytes.length) {
      throw new InvalidOption("less data than it says itself");
    }
    this.#at = start + count;
    return start;
  }
}
