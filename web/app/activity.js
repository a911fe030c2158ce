// What one link does, in numbers: how fast now and over the last minutes, and where in the image.

import { RateMeter } from "./rate.js";

/** Parts of the map, each of which is drawn as a square. */
export const CELLS = 512;
/** Steps into which a cell is divided, to tell one that was read from one that was touched. */
const STEPS = 8;
/** Bars of the plot, and milliseconds of each: three minutes altogether. */
export const BARS = 90;
const BAR_MS = 2000;
/** Milliseconds for which a cell counts as being read now. */
const NOW_MS = 1500;

/** @typedef {import("../nbd/nbd.js").State} LinkState */

export class Activity {
  #meter = new RateMeter();
  #read;
  /** When each cell was read last. */
  #times = new Float64Array(CELLS).fill(-Infinity);
  /** Bytes by the number of their bar; older ones are forgotten. @type {Map<number, number>} */
  #bars = new Map();
  #bytes = 0;

  /** @param {number} size of the image, bytes */
  constructor(size) {
    this.size = size;
    this.#read = new Uint8Array(CELLS * STEPS);
    /** @type {LinkState["lastRead"]} */
    this.lastRead = null;
    /** Of the latest news, on nbd.js's clock. */
    this.time = 0;
  }

  /** @param {Pick<LinkState, "time" | "bytes" | "reads" | "lastRead">} detail */
  add({ time, bytes, reads, lastRead }) {
    this.#meter.add(time, bytes);
    const bar = Math.floor(time / BAR_MS);
    this.#bars.set(bar, (this.#bars.get(bar) ?? 0) + bytes - this.#bytes);
    this.#bytes = bytes;
    for (const old of this.#bars.keys()) if (old <= bar - BARS) this.#bars.delete(old);
    for (const range of reads) this.#mark(range, time);
    this.lastRead = lastRead;
    this.time = time;
  }

  /** @param {import("../nbd/nbd.js").Range} range @param {number} time */
  #mark({ offset, length }, time) {
    const step = this.size / this.#read.length;
    const end = Math.min(this.#read.length, Math.ceil((offset + length) / step));
    this.#read.fill(1, Math.floor(offset / step), end);
    this.#times.fill(time, Math.floor(offset / step / STEPS), Math.ceil(end / STEPS));
  }

  /** @param {number} now on nbd.js's clock @returns {number} bytes a second */
  rate(now) {
    return this.#meter.rate(now);
  }

  /** @param {number} now @returns {number[]} bytes a second, oldest first; the last bar is not over yet */
  series(now) {
    const last = Math.floor(now / BAR_MS);
    return Array.from({ length: BARS }, (_, index) => {
      const bar = last - BARS + 1 + index;
      const span = bar === last ? Math.max(500, now - bar * BAR_MS) : BAR_MS;
      return ((this.#bars.get(bar) ?? 0) * 1000) / span;
    });
  }

  /** @param {number} now @returns {("" | "some" | "all" | "now")[]} what became of each cell */
  cells(now) {
    return Array.from({ length: CELLS }, (_, cell) => {
      if (now - this.#times[cell] < NOW_MS) return "now";
      const read = this.#stepsOf(cell);
      if (read === 0) return "";
      return read === STEPS ? "all" : "some";
    });
  }

  /** @param {number} cell @returns {number} how many of its steps were read */
  #stepsOf(cell) {
    return this.#read.subarray(cell * STEPS, (cell + 1) * STEPS).reduce((sum, one) => sum + one, 0);
  }

  /** @returns {number} how much of the image was read at least once, from 0 to 1 */
  share() {
    return this.#read.reduce((sum, one) => sum + one, 0) / this.#read.length;
  }
}
