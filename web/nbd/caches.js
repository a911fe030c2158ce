/** @module */

import { BLOCK, BlockCache } from "./blocks.js";
import { WINDOW, WindowCache } from "./cache.js";

/** Bytes of an image that are kept in memory unless the caller says how many. */
export const CACHE = 100 * 1024 * 1024;

/** Bytes of them that blocks for short reads may have at most; theirs is the ninth part. */
const SHORT = 4 * 1024 * 1024;

/**
 * An image with what remembers it in front: windows for who reads on and on, blocks for short
 * reads. What is being read and sent comes on top.
 *
 * @param {object} source
 * @param {number} source.size bytes
 * @param {(offset: number, length: number) => Promise<Uint8Array>} source.read exactly so many
 * @param {boolean} [source.local] whether to read more than was asked for takes milliseconds and nothing else
 * @param {number} [bytes] that are kept at most, 0 or more
 */
export function cached(source, bytes = CACHE) {
  const short = Math.min(SHORT, bytes / 9);
  const blocks = new BlockCache(source, Math.floor(short / BLOCK));
  return new WindowCache(
    { ...source, read: (offset, length) => blocks.read(offset, length) },
    Math.floor((bytes - short) / WINDOW),
  );
}
