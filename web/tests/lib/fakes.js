// Stand-ins for what surrounds nbd.js: an image that needs no memory, a transport that keeps what
// was sent, and a WebSocket whose other end is the test.

import { bytes } from "./client.js";

/**
 * The byte of an endless image: no two windows, blocks or 32-bit halves look the same.
 *
 * @param {number} position
 */
export function patternAt(position) {
  return (position + Math.floor(position / 251) + Math.floor(position / 2 ** 32) * 7) % 256;
}

/**
 * @param {number} offset
 * @param {number} length
 */
export function pattern(offset, length) {
  return Uint8Array.from({ length }, (_, index) => patternAt(offset + index));
}

/**
 * An image of any size that writes down how it is read.
 *
 * @param {number} size
 */
export function patternImage(size) {
  /** @type {{offset: number, length: number}[]} */
  const reads = [];
  return {
    size,
    reads,
    /**
     * @param {number} offset
     * @param {number} length
     */
    async read(offset, length) {
      reads.push({ offset, length });
      return pattern(offset, length);
    },
  };
}

/** A transport that keeps what was sent. */
export class FakeTransport {
  /** @type {Uint8Array[]} */
  messages = [];
  queued = 0;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {Uint8Array} message */
  send(message) {
    this.messages.push(message.slice());
  }

  backlog() {
    return this.queued;
  }

  /** @param {() => void} resume */
  onceDrained(resume) {
    this.#waiting.push(resume);
  }

  drain() {
    this.queued = 0;
    for (const resume of this.#waiting.splice(0)) {
      resume();
    }
  }

  /** All that was sent since the last call, in one piece. */
  takeBytes() {
    return bytes(...this.messages.splice(0));
  }
}

/** A WebSocket whose server is the test. */
export class FakeWebSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  CONNECTING = 0;
  OPEN = 1;
  CLOSING = 2;
  CLOSED = 3;

  /** @type {FakeWebSocket[]} those that were made, the latest last */
  static made = [];

  readyState = 0;
  bufferedAmount = 0;
  binaryType = "blob";
  /** @type {(Uint8Array | string)[]} what nbd.js sent */
  sent = [];
  /** @type {{code: number | undefined, reason: string | undefined} | null} */
  closeAsked = null;
  /** @type {((event: any) => void) | null} */
  onopen = null;
  /** @type {((event: any) => void) | null} */
  onmessage = null;
  /** @type {((event: any) => void) | null} */
  onerror = null;
  /** @type {((event: any) => void) | null} */
  onclose = null;

  /**
   * @param {string} url
   * @param {string[]} protocols
   */
  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeWebSocket.made.push(this);
  }

  static latest() {
    return FakeWebSocket.made[FakeWebSocket.made.length - 1];
  }

  /** @param {Uint8Array | string} data */
  send(data) {
    if (this.readyState === 0) {
      throw new DOMException("still connecting", "InvalidStateError");
    }
    this.sent.push(typeof data === "string" ? data : data.slice());
  }

  /**
   * @param {number} [code]
   * @param {string} [reason]
   */
  close(code, reason) {
    this.closeAsked ??= { code, reason };
    this.readyState = Math.max(this.readyState, 2);
  }

  // What the test does as the server.

  open() {
    this.readyState = 1;
    this.onopen?.({});
  }

  /**
   * @param {Uint8Array} data
   * @param {number} [step] bytes in a message
   */
  deliver(data, step = data.length) {
    for (let at = 0; at < data.length; at += step) {
      this.onmessage?.({ data: data.slice(at, at + step).buffer });
    }
  }

  /** @param {unknown} message an object is sent as JSON, a string as it is */
  deliverText(message) {
    this.onmessage?.({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  /**
   * @param {number} code
   * @param {string} [reason]
   */
  closeByServer(code, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** Bytes that nbd.js sent since the last call. */
  takeBytes() {
    const binary = this.sent.filter((message) => typeof message !== "string");
    this.sent = this.sent.filter((message) => typeof message === "string");
    return bytes(.../** @type {Uint8Array[]} */ (binary));
  }

  /** Messages in JSON that nbd.js sent since the last call. */
  takeMessages() {
    const texts = this.sent.filter((message) => typeof message === "string");
    this.sent = this.sent.filter((message) => typeof message !== "string");
    return texts.map((message) => JSON.parse(/** @type {string} */ (message)));
  }
}

/**
 * Waits for what happens without a timer, and fails where it never does. The clock of a test may stand still: this is another one.
 *
 * @param {() => boolean} condition
 */
export async function until(condition) {
  const deadline = performance.now() + 30_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`never true: ${condition}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Small, fast and repeatable pseudo-random numbers in [0, limit). @param {number} seed */
export function randomFrom(seed) {
  let state = seed;
  /** @param {number} limit */
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}
