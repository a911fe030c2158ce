/**
 * An image that only the caller's thread can read, used from a Worker: both ends of the talk.
 *
 * @module
 */

import { ImageError } from "./image-error.js";

/** @typedef {import("./image-error.js").ImageErrorCode} ImageErrorCode */
/** @typedef {import("./image.js").ImageInfo} ImageInfo */
/** @typedef {import("./image.js").Source} Source */

/** @typedef {{type: "read", id: number, offset: number, length: number}} ReadQuestion */

/**
 * @typedef {{type: "bytes", id: number, bytes: Uint8Array<ArrayBuffer>}
 *   | {type: "failed", id: number, code: ImageErrorCode, reason: string}} ReadAnswer
 */

/** The Worker's end: a source that asks. */
export class RemoteSource {
  /** Somebody else can read it, not the Worker. */
  blob = null;
  #post;
  /** @type {Map<number, {resolve: (bytes: Uint8Array<ArrayBuffer>) => void, reject: (error: ImageError) => void}>} */
  #asked = new Map();
  #lastId = 0;

  /**
   * @param {ImageInfo} info
   * @param {(question: ReadQuestion) => void} post
   */
  constructor(info, post) {
    this.info = info;
    this.#post = post;
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  read(offset, length) {
    return new Promise((resolve, reject) => {
      this.#lastId += 1;
      this.#asked.set(this.#lastId, { resolve, reject });
      this.#post({ type: "read", id: this.#lastId, offset, length });
    });
  }

  /** @param {ReadAnswer} answer */
  settle(answer) {
    const asked = this.#asked.get(answer.id);
    this.#asked.delete(answer.id);
    if (answer.type === "bytes") {
      asked?.resolve(answer.bytes);
    } else {
      asked?.reject(new ImageError(answer.code, answer.reason));
    }
  }
}

/**
 * The other end: reads what was asked for, and gives the buffer away.
 *
 * @param {Source} source
 * @param {ReadQuestion} question
 * @param {(answer: ReadAnswer, transfer: Transferable[]) => void} post
 */
export async function answerRead(source, { id, offset, length }, post) {
  try {
    const bytes = await source.read(offset, length);
    post({ type: "bytes", id, bytes }, [bytes.buffer]);
  } catch (error) {
    const { code, message } = /** @type {ImageError} */ (error);
    post({ type: "failed", id, code, reason: message }, []);
  }
}
