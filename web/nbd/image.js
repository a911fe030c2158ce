/** @module */

import { BlobReader } from "./blob.js";
import { changed, ImageError, imageErrorFrom } from "./image-error.js";
import { encodeText, MAX_STRING_LENGTH } from "./protocol.js";
import { Witness } from "./witness.js";

/**
 * @typedef {object} CustomImage anything that can be read at an offset
 * @property {number} size bytes, 1 to Number.MAX_SAFE_INTEGER
 * @property {(offset: number, length: number) => ReadResult | Promise<ReadResult>} read exactly
 *   `length` bytes. An ArrayBuffer becomes ours (a Worker takes it away); a view is copied
 * @property {string} [name] what people are shown
 * @property {number | null} [modified] milliseconds since 1970
 */

/** @typedef {ArrayBuffer | ArrayBufferView} ReadResult */
/** @typedef {Blob | FileSystemFileHandle | CustomImage} Image a File is a Blob */

/**
 * @typedef {object} ImageInfo
 * @property {string} name
 * @property {number} size bytes
 * @property {number | null} modified milliseconds since 1970
 */

/**
 * @typedef {object} Source an image that was opened
 * @property {ImageInfo} info
 * @property {Blob | null} blob what a Worker can read by itself
 * @property {(offset: number, length: number) => Promise<Uint8Array<ArrayBuffer>>} read exactly so
 *   many bytes, in a buffer of their own; rejects with an {@link ImageError}
 */

/**
 * @param {unknown} image
 * @param {{name?: string, modified?: number | null}} [given] overrides what the image says
 * @returns {Promise<Source>}
 * @throws {ImageError}
 */
export async function openImage(image, given = {}) {
  const opened = await openAny(/** @type {Image | null | undefined} */ (image), given.name);
  const info = {
    name: usableName(given.name ?? opened.name ?? "image"),
    size: opened.image.size,
    modified: given.modified !== undefined ? given.modified : opened.modified,
  };
  checkSize(info);
  return isBlob(opened.image)
    ? openBlob(opened.image, info)
    : { info, blob: null, read: readerOf(opened.image, info.name) };
}

/**
 * @param {Blob} blob
 * @param {ImageInfo} info
 * @returns {Source}
 */
export function openBlob(blob, info) {
  const witness = new Witness(readerOf(new BlobReader(blob), info.name), info);
  return { info, blob, read: (offset, length) => witness.read(offset, length) };
}

/**
 * @param {Image | null | undefined} image
 * @param {string} [name]
 * @returns {Promise<{image: Blob | CustomImage, name?: string, modified: number | null}>}
 */
async function openAny(image, name) {
  if (image !== null && typeof image === "object") {
    if ("getFile" in image) {
      return openHandle(image, name);
    }
    if (isBlob(image)) {
      const file = /** @type {Partial<File>} */ (image);
      return { image, name: file.name, modified: file.lastModified ?? null };
    }
    if (typeof image.read === "function") {
      return { image, name: image.name, modified: image.modified ?? null };
    }
  }
  throw new ImageError("no-image", "No image was chosen. Choose a file first.");
}

/**
 * @param {FileSystemFileHandle} handle
 * @param {string} [name]
 */
async function openHandle(handle, name = handle.name) {
  try {
    const file = await handle.getFile();
    return { image: file, name: file.name, modified: file.lastModified };
  } catch (error) {
    throw imageErrorFrom(error, name);
  }
}

/**
 * By what it can do rather than by its class: it may come from another window.
 *
 * @param {object} image
 * @returns {image is Blob}
 */
function isBlob(image) {
  return "slice" in image && "arrayBuffer" in image;
}

/** @param {ImageInfo} info */
function checkSize({ name, size }) {
  if (size === 0) {
    throw new ImageError("empty-image", `"${name}" is empty: a disk needs at least one byte.`);
  }
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new ImageError("image-unreadable", `"${name}" has no usable size: ${size}.`);
  }
}

/**
 * @param {{read: CustomImage["read"]}} image
 * @param {string} name
 * @returns {Source["read"]}
 */
function readerOf(image, name) {
  return async (offset, length) => {
    let result;
    try {
      result = ownBytes(await image.read(offset, length));
    } catch (error) {
      throw imageErrorFrom(error, name);
    }
    if (result.length !== length) {
      throw changed(name, `${length} bytes at ${offset} were asked for, ${result.length} came`);
    }
    return result;
  };
}

/**
 * @param {ReadResult} result
 * @returns {Uint8Array<ArrayBuffer>}
 */
function ownBytes(result) {
  if (result instanceof ArrayBuffer) {
    return new Uint8Array(result);
  }
  if (ArrayBuffer.isView(result)) {
    return new Uint8Array(result.buffer, result.byteOffset, result.byteLength).slice();
  }
  throw new TypeError("read() must give an ArrayBuffer or a view of one");
}

/**
 * @param {string} name
 * @returns {string} such as NBD allows, in UTF-8, where a UTF-16 unit takes at most three bytes
 */
function usableName(name) {
  const short = name.slice(0, Math.floor(MAX_STRING_LENGTH / 4)).replaceAll("\0", "");
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(encodeText(short));
}
