// The Worker of browsers, made of one of Node's threads.

import { Worker as Thread } from "node:worker_threads";

const PRELUDE = `
  const { parentPort, workerData } = require("node:worker_threads");
  globalThis.self = globalThis;
  globalThis.WebSocket = require(workerData.ws).WebSocket;
  globalThis.postMessage = (data, transfer) => parentPort.postMessage(data, transfer);
  parentPort.on("message", (data) => globalThis.onmessage?.({ data }));
  import(workerData.url);
`;

/** Enough of a Worker for host.js. `made` remembers them. */
export class WebWorker {
  /** @type {WebWorker[]} */
  static made = [];
  /** Runs instead of the script that is asked for, when set. @type {string | null} */
  static replacement = null;

  /** @type {((event: any) => void) | null} */
  onmessage = null;
  /** @type {((event: any) => void) | null} */
  onerror = null;
  #thread;

  /**
   * @param {URL} url
   * @param {{type: string}} options
   */
  constructor(url, options) {
    this.url = url;
    this.options = options;
    this.#thread = new Thread(PRELUDE, {
      eval: true,
      workerData: {
        url: WebWorker.replacement ?? url.href,
        ws: new URL("../../../node_modules/ws/index.js", import.meta.url).pathname,
      },
    });
    this.#thread.on("message", (data) => this.onmessage?.({ data }));
    this.#thread.on("error", ({ message }) =>
      this.onerror?.({ message, preventDefault: () => {} }),
    );
    WebWorker.made.push(this);
  }

  /**
   * @param {unknown} data
   * @param {import("node:worker_threads").TransferListItem[]} transfer
   */
  postMessage(data, transfer) {
    this.#thread.postMessage(data, transfer);
  }

  terminate() {
    this.#thread.terminate();
  }
}
