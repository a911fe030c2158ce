/**
 * Where the engine runs: in a Worker, so that a busy page does not slow the disk down, or on this
 * thread where there is none.
 *
 * @module
 */

import { Engine, IDLE } from "./engine.js";
import { answerRead } from "./remote.js";

/** @typedef {import("./engine.js").State} State */
/** @typedef {import("./image.js").ImageInfo} ImageInfo */
/** @typedef {import("./image.js").Source} Source */
/** @typedef {import("./link.js").LinkAddress} LinkAddress */
/** @typedef {import("./remote.js").ReadAnswer} ReadAnswer */
/** @typedef {import("./remote.js").ReadQuestion} ReadQuestion */

/**
 * @typedef {{type: "start", address: LinkAddress, info: ImageInfo, blob: Blob | null,
 *   cache?: number}
 *   | {type: "stop"} | {type: "wake"} | ReadAnswer} ToWorker
 */

/** @typedef {{type: "ready"} | {type: "state", state: State} | ReadQuestion} FromWorker */

/**
 * @typedef {object} Job
 * @property {LinkAddress} address
 * @property {Source} source
 * @property {boolean} worker whether a Worker is wanted
 * @property {number} [cache] bytes of the image that are kept in memory at most
 * @property {import("./link.js").SocketClass} [Socket] instead of the global WebSocket; no Worker
 */

/**
 * @typedef {object} Run
 * @property {() => void} stop
 * @property {() => void} wake the network or the tab came back
 */

/** Milliseconds that a Worker which is done has for its last message to the server. */
const LAST_WORDS = 1000;

/**
 * @param {Job} job
 * @param {(state: State) => void} emit gets each state; the last one has the phase "ended"
 * @returns {Run}
 */
export function run(job, emit) {
  if (!job.worker || job.Socket !== undefined || typeof Worker === "undefined") {
    return runHere(job, emit);
  }
  return new WorkerRun(job, emit);
}

/**
 * @param {Job} job
 * @param {(state: State) => void} emit
 */
function runHere({ address, source, Socket, cache }, emit) {
  const engine = new Engine(address, source, emit, Socket, cache);
  engine.start();
  return engine;
}

class WorkerRun {
  #job;
  #emit;
  /** @type {Worker | null} */
  #worker = null;
  #ready = false;
  /** @type {State} the last one */
  #state;
  /** @type {Run | null} what runs here instead, where the Worker did not start */
  #instead = null;
  #stopped = false;

  /**
   * @param {Job} job
   * @param {(state: State) => void} emit
   */
  constructor(job, emit) {
    this.#job = job;
    this.#emit = emit;
    this.#state = { ...IDLE, phase: "connecting", image: job.source.info };
    try {
      // Written so that bundlers see it. The address is of the same origin, as policies demand.
      this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
      this.#worker.onmessage = (event) => this.#receive(event.data);
      this.#worker.onerror = (event) => this.#failed(event);
    } catch {
      this.#instead = runHere(job, emit);
    }
  }

  stop() {
    this.#stopped = true;
    if (this.#instead !== null) {
      this.#instead.stop();
    } else if (this.#ready) {
      this.#post({ type: "stop" });
    }
  }

  wake() {
    if (this.#instead !== null) {
      this.#instead.wake();
    } else if (this.#ready) {
      this.#post({ type: "wake" });
    }
  }

  /** @param {FromWorker} message */
  #receive(message) {
    if (message.type === "ready") {
      this.#begin();
    } else if (message.type === "read") {
      answerRead(this.#job.source, message, (answer, transfer) => this.#post(answer, transfer));
    } else {
      this.#pass(message.state);
    }
  }

  #begin() {
    const { address, source, cache } = this.#job;
    this.#ready = true;
    this.#post({ type: "start", address, info: source.info, blob: source.blob, cache });
    if (this.#stopped) {
      this.#post({ type: "stop" });
    }
  }

  /** @param {State} state */
  #pass(state) {
    this.#state = state;
    this.#emit(state);
    if (state.phase === "ended") {
      setTimeout(() => this.#worker?.terminate(), LAST_WORDS);
    }
  }

  /** @param {ErrorEvent} event */
  #failed(event) {
    event.preventDefault();
    if (!this.#ready) {
      this.#worker?.terminate();
      this.#instead = runHere(this.#job, this.#emit);
      if (this.#stopped) {
        this.#instead.stop();
      }
    } else if (this.#state.phase !== "ended") {
      const reason = `nbd.js failed: ${event.message}`;
      this.#pass({
        ...this.#state,
        phase: "ended",
        error: { code: "internal", reason, closeCode: null },
      });
    }
  }

  /**
   * @param {ToWorker} message
   * @param {Transferable[]} [transfer]
   */
  #post(message, transfer = []) {
    this.#worker?.postMessage(message, transfer);
  }
}
