// Computes an image's SHA-256 apart from the page, which stays usable meanwhile. Terminated when nobody wants it.

import { Sha256 } from "./sha256.js";

const CHUNK = 4 * 1024 * 1024;
const TELL_MS = 250;

const scope = /** @type {{onmessage: unknown, postMessage: (message: Progress) => void}} */ (
  /** @type {unknown} */ (self)
);

/** @typedef {{done: number, hex: string, error: string}} Progress `hex` is empty until all is done */

/** @param {MessageEvent<Blob>} event */
scope.onmessage = async ({ data: blob }) => {
  const hash = new Sha256();
  let told = performance.now();
  try {
    for (let at = 0; at < blob.size; at += CHUNK) {
      hash.update(new Uint8Array(await blob.slice(at, at + CHUNK).arrayBuffer()));
      if (performance.now() - told < TELL_MS) continue;
      told = performance.now();
      scope.postMessage({ done: Math.min(at + CHUNK, blob.size), hex: "", error: "" });
    }
    scope.postMessage({ done: blob.size, hex: hash.hex(), error: "" });
  } catch {
    scope.postMessage({ done: 0, hex: "", error: "The file cannot be read any more." });
  }
};
