/** @module */

/** In how many parts an image is looked at, at most. */
const PARTS = 4096;

/** Bytes of a sector: parts are whole ones. */
const SECTOR = 512;

/**
 * @typedef {object} Range a part of the image
 * @property {number} offset bytes
 * @property {number} length bytes
 */

/**
 * Which parts of an image were read since it was asked last. What that costs does not depend on how
 * many reads there are, so it is exact to a 4096th of the image.
 */
export class Trace {
  #size;
  #part;
  /** @type {Set<number>} */
  #read = new Set();

  /** @param {number} size of the image, bytes */
  constructor(size) {
    this.#size = size;
    this.#part = Math.max(1, Math.ceil(size / PARTS / SECTOR)) * SECTOR;
  }

  /**
   * @param {number} offset
   * @param {number} length more than 0
   */
  add(offset, length) {
    const last = Math.floor((offset + length - 1) / this.#part);
    for (let part = Math.floor(offset / this.#part); part <= last; part += 1) {
      this.#read.add(part);
    }
  }

  /** @returns {Range[]} from the image's beginning to its end, none next to another; then forgets them */
  take() {
    /** @type {Range[]} */
    const ranges = [];
    for (const part of [...this.#read].sort((a, b) => a - b)) {
      const offset = part * this.#part;
      const end = Math.min(offset + this.#part, this.#size);
      const before = ranges.at(-1);
      if (before !== undefined && before.offset + before.length === offset) {
        before.length = end - before.offset;
      } else {
        ranges.push({ offset, length: end - offset });
      }
    }
    this.#read.clear();
    return ranges;
  }
}
