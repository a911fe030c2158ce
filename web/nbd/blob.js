/** @module */

/**
 * Reads of at least so many bytes that follow one another are taken from a stream. For shorter
 * ones a slice of their own is as good.
 */
const LONG = 1024 * 1024;

/** Milliseconds. */
const SECOND = 1000;

/** Sequences that are remembered, and streams that may be open. */
const SEQUENCES = 4;

/**
 * @typedef {object} Sequence long reads of which each begins where the last one ended
 * @property {number} next where the next one would begin
 * @property {BlobStream | null} stream which is there, once a second read has come
 */

/**
 * A Blob's bytes: by slices, which a browser takes about a millisecond for, whatever their length;
 * and for long reads in a row by a stream, which takes less of the processor's time.
 */
export class BlobReader {
  #blob;
  /** @type {Sequence[]} the least recently used first */
  #sequences = [];
  #streams = true;
  /** @type {Promise<void> | null} */
  #settled = null;

  /** @param {Blob} blob */
  constructor(blob) {
    this.#blob = blob;
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {Promise<ArrayBuffer>} fewer bytes where the Blob ends
   */
  async read(offset, length) {
    this.#settled ??= settle(this.#blob);
    await this.#settled;
    const stream = this.#streams && length >= LONG ? this.#streamAt(offset, length) : null;
    if (stream === null) {
      return this.#slice(offset, length);
    }
    try {
      const bytes = await stream.read(length);
      // The browser compares the file's time with what it was when a read begins, and that of
      // the stream began long ago.
      await this.#slice(offset, 1);
      return bytes;
    } catch {
      // Not every browser fills buffers of ours. What is wrong with the file, a slice will say.
      this.#streams = false;
      return this.#slice(offset, length);
    }
  }

  /**
   * @param {number} offset
   * @param {number} length
   */
  #slice(offset, length) {
    return this.#blob.slice(offset, offset + length).arrayBuffer();
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {BlobStream | null} one whose next byte is at `offset`, unless nothing led there
   */
  #streamAt(offset, length) {
    const sequence = this.#sequences.find(({ next }) => next === offset) ?? null;
    const others = this.#sequences.filter((other) => other !== sequence);
    const stream =
      sequence === null ? null : (sequence.stream ?? new BlobStream(this.#blob.slice(offset)));
    const given = [...others, { next: offset + length, stream }];
    for (const old of given.slice(0, -SEQUENCES)) {
      old.stream?.close();
    }
    this.#sequences = given.slice(-SEQUENCES);
    return stream;
  }
}

/** A Blob from its beginning, in pieces of any length, each in a buffer of its own. */
class BlobStream {
  #blob;
  /** @type {ReadableStreamBYOBReader | null} */
  #reader = null;
  /** @type {Promise<unknown>} the read before */
  #turn = Promise.resolve();

  /** @param {Blob} blob */
  constructor(blob) {
    this.#blob = blob;
  }

  /**
   * @param {number} length
   * @returns {Promise<ArrayBuffer>}
   */
  read(length) {
    const bytes = this.#turn.then(() => this.#fill(length));
    this.#turn = bytes;
    return bytes;
  }

  close() {
    const closed = this.#turn.then(() => this.#reader?.cancel());
    closed.catch(() => {});
  }

  /** @param {number} length */
  async #fill(length) {
    this.#reader ??= this.#blob.stream().getReader({ mode: "byob" });
    let buffer = new ArrayBuffer(length);
    let filled = 0;
    while (filled < length) {
      const { value, done } = await this.#reader.read(new Uint8Array(buffer, filled));
      if (value === undefined || done) {
        throw new Error("the stream has ended too early");
      }
      filled += value.length;
      // The buffer that was given away has come back as this one.
      buffer = value.buffer;
    }
    return buffer;
  }
}

/**
 * WebKit compares a file's time to the second only, and fills a slice up with zeros where the file
 * has become shorter. So the second of the last change has to be over before the first read: what
 * comes later, the browser notices. What came before, a stream tells: it is not filled up.
 *
 * @param {Blob} blob
 * @throws {DOMException} as the browser's own, where the file has lost its end
 */
async function settle(blob) {
  const { lastModified } = /** @type {Partial<File>} */ (blob);
  if (lastModified === undefined) {
    return;
  }
  const left = SECOND - (lastModified % SECOND) - (Date.now() - lastModified);
  if (left > 0 && left <= SECOND) {
    await new Promise((resolve) => setTimeout(resolve, left));
  }
  const reader = blob
    .slice(blob.size - 1)
    .stream()
    .getReader();
  if ((await reader.read()).done) {
    throw new DOMException("The file is shorter than it was.", "NotReadableError");
  }
  await reader.cancel();
}
