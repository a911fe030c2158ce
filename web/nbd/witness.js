/** @module */

import { changed } from "./image-error.js";

/** Bytes of each sample: a disk's first and last blocks hold what changes with it. */
const SAMPLE = 64 * 1024;

/** Milliseconds between two looks. */
const INTERVAL = 1000;

/** @typedef {(offset: number, length: number) => Promise<Uint8Array<ArrayBuffer>>} Read */

/**
 * Notices that a file has become another one. Chromium and WebKit compare a file's time when it is
 * read; Firefox goes on with whatever lies under its name. So the beginning and the end are read
 * again now and then, and compared with what they were.
 */
export class Witness {
  #read;
  #size;
  #name;
  /** @type {Uint8Array[] | null} */
  #remembered = null;
  #lookedAt = 0;
  #changed = false;

  /**
   * @param {Read} read
   * @param {import("./image.js").ImageInfo} info
   */
  constructor(read, { size, name }) {
    this.#read = read;
    this.#size = size;
    this.#name = name;
  }

  /**
   * Reads, and makes sure that it was the same image, as far as of a second ago.
   *
   * @type {Read}
   */
  async read(offset, length) {
    const remembered = this.#remembered ?? (await this.#sample());
    this.#remembered = remembered;
    const bytes = await this.#read(offset, length);
    if (performance.now() - this.#lookedAt > INTERVAL) {
      const seen = await this.#sample();
      this.#changed ||= !seen.every((sample, index) => equal(sample, remembered[index]));
    }
    if (this.#changed) {
      throw changed(this.#name, "it has other content");
    }
    return bytes;
  }

  #sample() {
    this.#lookedAt = performance.now();
    const length = Math.min(SAMPLE, this.#size);
    return Promise.all([this.#read(0, length), this.#read(this.#size - length, length)]);
  }
}

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b as long
 */
function equal(a, b) {
  // A call for each byte would take milliseconds of each second from the reads.
  for (let at = 0; at < a.length; at += 1) {
    if (a[at] !== b[at]) {
      return false;
    }
  }
  return true;
}
