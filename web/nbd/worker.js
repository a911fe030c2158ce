/**
 * What runs in the Worker: an engine, and the talk with the thread that started it (host.js).
 *
 * @module
 */

import { Engine } from "./engine.js";
import { openBlob } from "./image.js";
import { RemoteSource } from "./remote.js";

/** @typedef {import("./host.js").ToWorker} ToWorker */
/** @typedef {import("./host.js").FromWorker} FromWorker */
/** @typedef {import("./image.js").Source} Source */

const scope = /** @type {DedicatedWorkerGlobalScope} */ (/** @type {unknown} */ (self));

/** @type {Engine | null} */
let engine = null;

/** @type {RemoteSource | null} */
let remote = null;

/** @param {FromWorker} message */
function post(message) {
  scope.postMessage(message);
}

/**
 * @param {Extract<ToWorker, {type: "start"}>} message
 * @returns {Source}
 */
function open({ blob, info }) {
  if (blob !== null) {
    return openBlob(blob, info);
  }
  remote = new RemoteSource(info, post);
  return remote;
}

scope.onmessage = (event) => {
  const message = /** @type {ToWorker} */ (event.data);
  switch (message.type) {
    case "start":
      engine = new Engine(
        message.address,
        open(message),
        (state) => post({ type: "state", state }),
        WebSocket,
        message.cache,
      );
      engine.start();
      break;
    case "stop":
      engine?.stop();
      break;
    case "wake":
      engine?.wake();
      break;
    default:
      remote?.settle(message);
  }
};

post({ type: "ready" });
