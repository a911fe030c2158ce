/** @module */

/** Bytes of a block; blocks lie at multiples of it. A slice of so many takes hardly longer than one of 4 KiB. */
export const BLOCK = 64 * 1024;

/** Blocks that are kept where nobody says how many. */
const KEPT_BLOCKS = 64;

/** Blocks that may be read in vain before short reads are read as they are. */
const CREDIT = 32;

/**
 * Short reads by blocks, where they have neighbours. Each block that is read costs a credit, and
 * each short read of a block that was touched before brings one; so over an image that is read
 * here and there, what was asked for is read and no more.
 */
export class BlockCache {
  #source;
  #kept;
  #credit = CREDIT;
  /** @type {Map<number, Promise<Uint8Array> | null>} by number, null where it was only touched; the least recently used first */
  #blocks = new Map();

  /**
   * @param {object} source
   * @param {number} source.size bytes
   * @param {(offset: number, length: number) => Promise<Uint8Array>} source.read exactly so many
   * @param {number} [kept] blocks at most
   */
  constructor(source, kept = KEPT_BLOCKS) {
    this.#source = source;
    this.#kept = kept;
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {Promise<Uint8Array>} not to be written to
   */
  async read(offset, length) {
    const index = Math.floor(offset / BLOCK);
    const start = index * BLOCK;
    if (this.#kept === 0 || offset + length > start + BLOCK || length === BLOCK) {
      return this.#source.read(offset, length);
    }
    const block = this.#touch(index);
    if (block === null) {
      return this.#source.read(offset, length);
    }
    try {
      return (await block).subarray(offset - start, offset - start + length);
    } catch {
      // One bad spot must not take its surroundings with it.
      return this.#source.read(offset, length);
    }
  }

  /** @param {number} index of a block that is the most recently used from now on */
  #touch(index) {
    const known = this.#blocks.get(index);
    if (known !== undefined) {
      this.#credit = Math.min(this.#credit + 1, CREDIT);
    }
    const block = known ?? this.#load(index);
    this.#blocks.delete(index);
    this.#blocks.set(index, block);
    for (const oldest of this.#blocks.keys()) {
      if (this.#blocks.size <= this.#kept) {
        break;
      }
      this.#blocks.delete(oldest);
    }
    return block;
  }

  /** @param {number} index */
  #load(index) {
    if (this.#credit === 0) {
      return null;
    }
    this.#credit -= 1;
    const start = index * BLOCK;
    const block = this.#source.read(start, Math.min(BLOCK, this.#source.size - start));
    block.catch(() => {
      // The next one who asks tries again.
      if (this.#blocks.get(index) === block) {
        this.#blocks.delete(index);
      }
    });
    return block;
  }
}
