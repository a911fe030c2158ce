/** @module */

/**
 * @param {Uint8Array[]} parts
 * @returns {Uint8Array<ArrayBuffer>} a copy of all of them, one behind the other
 */
export function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let filled = 0;
  for (const part of parts) {
    bytes.set(part, filled);
    filled += part.length;
  }
  return bytes;
}

/**
 * Bytes that arrived and were not understood yet: a queue of the pieces as they came. Nothing is
 * copied but what lies across two pieces, so that the cost of a byte does not depend on how the
 * stream was cut.
 */
export class ByteQueue {
  /** @type {Uint8Array[]} */
  #pieces = [];
  /** Pieces before this one are used up. */
  #first = 0;
  /** Bytes of the first piece that are used up. */
  #used = 0;
  #length = 0;

  /** Bytes in the queue. */
  get length() {
    return this.#length;
  }

  /** @param {Uint8Array} piece kept, not copied: it must not change afterwards */
  push(piece) {
    if (piece.length > 0) {
      this.#pieces.push(piece);
      this.#length += piece.length;
    }
  }

  /**
   * Takes `count` bytes out, or none when there are fewer.
   *
   * @param {number} count
   * @returns {Uint8Array | null} valid as long as the pieces are
   */
  take(count) {
    if (count > this.#length) {
      return null;
    }
    const piece = this.#pieces[this.#first];
    if (count > 0 && piece.length - this.#used < count) {
      return this.#gather(count);
    }
    const bytes = count > 0 ? piece.subarray(this.#used, this.#used + count) : new Uint8Array(0);
    this.#consume(count);
    return bytes;
  }

  /**
   * Drops up to `count` bytes.
   *
   * @param {number} count
   * @returns {number} how many there were to drop
   */
  discard(count) {
    let left = Math.min(count, this.#length);
    const dropped = left;
    while (left > 0) {
      const step = Math.min(left, this.#pieces[this.#first].length - this.#used);
      this.#consume(step);
      left -= step;
    }
    return dropped;
  }

  /** @param {number} count at most the queue's length */
  #gather(count) {
    const bytes = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      const piece = this.#pieces[this.#first];
      const part = piece.subarray(this.#used, this.#used + count - filled);
      bytes.set(part, filled);
      filled += part.length;
      this.#consume(part.length);
    }
    return bytes;
  }

  /** @param {number} count at most what is left of the first piece */
  #consume(count) {
    this.#length -= count;
    this.#used += count;
    if (this.#length === 0) {
      this.#pieces = [];
      this.#first = 0;
      this.#used = 0;
    } else if (this.#used === this.#pieces[this.#first].length) {
      this.#first += 1;
      this.#used = 0;
      this.#compact();
    }
  }

  /** Forgets used pieces now and then: often enough to free them, rarely enough to cost nothing. */
  #compact() {
    if (this.#first >= 64 && this.#first * 2 >= this.#pieces.length) {
      this.#pieces = this.#pieces.slice(this.#first);
      this.#first = 0;
    }
  }
}
