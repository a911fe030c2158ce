// The SHA-256 of one image at a time, computed in a Worker.

/** @typedef {import("./digest-worker.js").Progress} Progress */

export class Digest {
  /** @type {Worker | null} */
  #worker = null;

  /** @param {Blob} image @param {(progress: Progress) => void} tell */
  start(image, tell) {
    this.cancel();
    const worker = new Worker(new URL("./digest-worker.js", import.meta.url), { type: "module" });
    this.#worker = worker;
    worker.onmessage = (/** @type {MessageEvent<Progress>} */ { data }) => {
      if (data.hex !== "" || data.error !== "") this.cancel();
      tell(data);
    };
    worker.onerror = () => {
      this.cancel();
      tell({ done: 0, hex: "", error: "This browser cannot compute it." });
    };
    worker.postMessage(image);
    tell({ done: 0, hex: "", error: "" });
  }

  cancel() {
    this.#worker?.terminate();
    this.#worker = null;
  }
}
