/** @module */

/**
 * Reads in large aligned windows where somebody reads on and on, and exactly what was asked
 * for elsewhere. Where that goes all over a file, memory that nobody else has used yet is filled
 * with the windows around it.
 *
 * A browser takes about a millisecond for a read, whatever its length. A sequential reader is
 * therefore served from windows of 4 MiB, one of them read ahead; for a random one that would be
 * a thousand times too much. What is sequential is seen from the requests: each one that begins
 * where an earlier one ended makes that one's run longer. A random one is helped by nothing but
 * what is there by chance: the more the better, as long as the browser reads it in a few
 * milliseconds, and once.
 */

/** Bytes of a window; windows lie at multiples of it. */
export const WINDOW = 4 * 1024 * 1024;

/** Windows that are kept where nobody says how many. */
const KEPT_WINDOWS = 24;

/** Windows that a hint has read ahead at most. */
const HINTED = 4;

/** A run of this many bytes, in two requests or more, is read by windows. */
const SEQUENTIAL = 256 * 1024;

/** A run of this many bytes has its next window read ahead. */
const READ_AHEAD = 1024 * 1024;

/** Reads of no run, outside of all windows, before the windows around such are read. */
const SCATTERED = 32;

/** Runs that are remembered: that many sequential readers are told apart. */
const RUNS = 16;

/** The bytes of an image, for a Service. */
export class WindowCache {
  #source;
  #kept;
  #scattered = 0;
  #filling = false;
  /** @type {Map<number, Promise<Uint8Array>>} windows by number, the least recently used first */
  #windows = new Map();
  /** @type {{start: number, end: number}[]} the least recently extended first */
  #runs = [];

  /**
   * @param {object} source
   * @param {number} source.size bytes
   * @param {(offset: number, length: number) => Promise<Uint8Array>} source.read exactly so many
   * @param {boolean} [source.local] whether to read more than was asked for takes milliseconds and nothing else
   * @param {number} [kept] windows at most; a reader takes two, so with fewer there are none
   */
  constructor(source, kept = KEPT_WINDOWS) {
    this.#source = source;
    this.#kept = kept < 2 ? 0 : kept;
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {Promise<Uint8Array[]>} views of windows, not to be written to
   */
  read(offset, length) {
    if (length === 0) {
      return Promise.resolve([]);
    }
    const run = this.#extendRun(offset, offset + length);
    // One request is no sequence, however long.
    const sequential = this.#kept > 0 && run > length && run >= SEQUENTIAL;
    const parts = this.#readParts(offset, offset + length, sequential);
    const next = Math.ceil((offset + length) / WINDOW);
    if (sequential && run >= READ_AHEAD && next * WINDOW < this.#source.size) {
      this.#load(next).catch(() => {});
    } else if (run === length && this.#source.local) {
      this.#fill(Math.floor(offset / WINDOW));
    }
    return Promise.all(parts);
  }

  /**
   * @param {number} offset
   * @param {number} length
   */
  prefetch(offset, length) {
    const first = Math.floor(offset / WINDOW);
    for (let index = first; index < first + Math.min(HINTED, this.#kept / 2); index++) {
      if (index * WINDOW < offset + length) {
        this.#load(index).catch(() => {});
      }
    }
  }

  /**
   * One at a time, and only until all of the memory is used: what is read comes first.
   *
   * @param {number} index of a window that somebody has just read of
   */
  async #fill(index) {
    if (this.#windows.size >= this.#kept || this.#windows.has(index)) {
      return;
    }
    this.#scattered += 1;
    if (this.#scattered <= SCATTERED || this.#filling) {
      return;
    }
    this.#filling = true;
    // Who reads there hears of a bad spot; here it only means that the window can't be kept.
    await this.#load(index).catch(() => {});
    this.#filling = false;
  }

  /**
   * @param {number} start
   * @param {number} end
   * @returns {number} bytes of the run that this read belongs to, with it
   */
  #extendRun(start, end) {
    const run = { start, end };
    const others = this.#runs.filter((other) => other.end !== start && other.start !== end);
    for (const other of this.#runs) {
      // Reads may overtake each other, so that a run may also grow at its beginning.
      run.start = other.end === start ? other.start : run.start;
      run.end = other.start === end ? other.end : run.end;
    }
    this.#runs = [...others, run].slice(-RUNS);
    return run.end - run.start;
  }

  /**
   * @param {number} start
   * @param {number} end
   * @param {boolean} load whether windows that are not there are loaded
   * @returns {Promise<Uint8Array>[]}
   */
  #readParts(start, end, load) {
    const parts = [];
    let at = start;
    while (at < end) {
      const index = Math.floor(at / WINDOW);
      const inWindow = load || this.#windows.has(index);
      const stop = inWindow ? Math.min((index + 1) * WINDOW, end) : this.#missingUntil(index, end);
      parts.push(inWindow ? this.#slice(index, at, stop) : this.#source.read(at, stop - at));
      at = stop;
    }
    return parts;
  }

  /**
   * @param {number} index of a window that is not there
   * @param {number} end
   * @returns {number} where the next window begins that is there, or `end`
   */
  #missingUntil(index, end) {
    let next = index + 1;
    while (next * WINDOW < end && !this.#windows.has(next)) {
      next += 1;
    }
    return Math.min(next * WINDOW, end);
  }

  /**
   * @param {number} index
   * @param {number} start in the image
   * @param {number} end in the image
   */
  async #slice(index, start, end) {
    try {
      const window = await this.#load(index);
      return window.subarray(start - index * WINDOW, end - index * WINDOW);
    } catch {
      // One bad spot must not take the rest of its window with it.
      return this.#source.read(start, end - start);
    }
  }

  /**
   * @param {number} index
   * @returns {Promise<Uint8Array>} the window, which is the most recently used from now on
   */
  #load(index) {
    const known = this.#windows.get(index);
    this.#windows.delete(index);
    const window = known ?? this.#readWindow(index);
    this.#windows.set(index, window);
    this.#evict();
    return window;
  }

  /** @param {number} index */
  #readWindow(index) {
    const start = index * WINDOW;
    const window = this.#source.read(start, Math.min(WINDOW, this.#source.size - start));
    window.catch(() => {
      // The next one who asks tries again.
      if (this.#windows.get(index) === window) {
        this.#windows.delete(index);
      }
    });
    return window;
  }

  #evict() {
    for (const index of this.#windows.keys()) {
      if (this.#windows.size <= this.#kept) {
        return;
      }
      this.#windows.delete(index);
    }
  }
}
