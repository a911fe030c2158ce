// Where an image's bytes come from, and how numbers lie in them.

/**
 * @typedef {object} ImageSource
 * @property {number} size bytes
 * @property {(offset: number, length: number) => Promise<Uint8Array>} read exactly so many bytes, within the image
 */

/** Bytes of one look: nothing that an image says may make a look longer. */
const LONGEST_LOOK = 65536;

/** @param {Blob} blob @returns {ImageSource} */
export function blobSource(blob) {
  return {
    size: blob.size,
    read: async (offset, length) =>
      new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer()),
  };
}

/**
 * @param {ImageSource} source
 * @param {number} offset
 * @param {number} length
 * @returns {Promise<Bytes | null>} null where the image does not reach so far
 */
export async function look(source, offset, length) {
  const inside = Number.isSafeInteger(offset) && offset >= 0 && offset + length <= source.size;
  if (!inside || length > LONGEST_LOOK) return null;
  return new Bytes(await source.read(offset, length));
}

/** A part of an image. Offsets outside of it are a mistake of the caller's and throw. */
export class Bytes {
  /** @param {Uint8Array} array */
  constructor(array) {
    this.array = array;
    this.view = new DataView(array.buffer, array.byteOffset, array.byteLength);
  }

  /** @param {number} at @returns {number} */
  u8(at) {
    return this.view.getUint8(at);
  }

  /** @param {number} at @returns {number} little-endian */
  u16(at) {
    return this.view.getUint16(at, true);
  }

  /** @param {number} at @returns {number} little-endian */
  u32(at) {
    return this.view.getUint32(at, true);
  }

  /** @param {number} at @returns {number} little-endian; beyond 2^53 not exact, as no image is so long */
  u64(at) {
    return Number(this.view.getBigUint64(at, true));
  }

  /** @param {number} at @param {string} text of ASCII @returns {boolean} whether it stands there */
  has(at, text) {
    return this.latin(at, text.length) === text;
  }

  /** @param {number} at @param {number} length @returns {string} one character a byte */
  latin(at, length) {
    return String.fromCharCode(...this.array.subarray(at, at + length));
  }

  /**
   * @param {number} at
   * @param {number} length
   * @param {"utf-8" | "utf-16le" | "utf-16be"} [encoding]
   * @returns {string} to its first zero, without spaces at its ends
   */
  text(at, length, encoding = "utf-8") {
    const decoded = new TextDecoder(encoding).decode(this.array.subarray(at, at + length));
    // Control characters have no place in a name that is shown.
    return decoded
      .split("\0", 1)[0]
      .replace(/\p{Cc}/gu, "")
      .trim();
  }
}
