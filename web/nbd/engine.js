/** @module */

import { cached } from "./caches.js";
import { Hold, holdSeconds } from "./hold.js";
import { Link } from "./link.js";
import { Service } from "./service.js";
import { Trace } from "./trace.js";

/** @typedef {import("./image-error.js").ImageError} ImageError */
/** @typedef {import("./image.js").ImageInfo} ImageInfo */
/** @typedef {import("./image.js").Source} Source */
/** @typedef {import("./link.js").LinkAddress} LinkAddress */
/** @typedef {import("./link.js").LinkEnd} LinkEnd */
/** @typedef {import("./protocol.js").ProtocolError} ProtocolError */

/**
 * @typedef {object} Trouble the image can't be read just now: EIO is answered, the link goes on
 * @property {import("./image-error.js").ImageErrorCode} code
 * @property {string} reason for people
 */

/**
 * @typedef {object} EndError why it ended, unless in order
 * @property {import("./link.js").LinkErrorCode | import("./image-error.js").ImageErrorCode
 *   | "bad-address" | "internal"} code for programs; web/nbd/README.md lists them
 * @property {string} reason for people
 * @property {number | null} closeCode the WebSocket's, where it came to one
 */

/**
 * @typedef {object} ServerState what the server said last of the device, on a version 1 link
 * @property {"attaching" | "attached" | "held" | "draining"} phase
 * @property {string} configuration
 * @property {string | null} device
 * @property {number} size bytes, of the device
 * @property {boolean} read_only
 * @property {boolean} resumed
 * @property {number | null} seconds_left until the session ends, while it has no link; null while it has one
 * @property {number} [hold] seconds that it waits for a lost link
 * @property {Keep | null} keep the copy that it makes of the image, if any
 */

/**
 * @typedef {object} Keep
 * @property {number} bytes that are copied
 * @property {number} size bytes, of the image
 * @property {boolean} whole all is copied and verified: the link is not needed any more
 * @property {number | null} seconds_left until it is whole, as the server estimates it; null: unknown
 * @property {string | null} [problem] why there is no copy, for people
 */

/**
 * @typedef {object} Held the link was lost; another is tried again and again
 * @property {number} secondsLeft before the server gives the session up, as far as is known
 * @property {EndError["code"]} code why there is no link
 * @property {string} reason for people
 */

/** @typedef {import("./trace.js").Range} Range */

/**
 * @typedef {object} LastRead the latest read
 * @property {number} offset bytes, into the image
 * @property {number} length bytes
 * @property {number} time in milliseconds, of the same clock as the state's
 */

/** @typedef {"idle" | "connecting" | "serving" | "held" | "ended"} Phase */

/**
 * @typedef {object} State
 * @property {Phase} phase how far it is; "held" and "serving" may follow each other many times
 * @property {ImageInfo | null} image null until it was opened
 * @property {number} bytes of the image sent since start()
 * @property {number} requests answered since start()
 * @property {number} time in milliseconds, of a clock that only goes forward, of these two counts
 * @property {Range[]} reads what of the image was sent since the state before this one, in its order,
 *   each to whole 4096ths of the image
 * @property {LastRead | null} lastRead the latest of them, exactly
 * @property {number | null} roundTrip milliseconds to the server and back, while it can be measured
 * @property {ServerState | null} server what the server has told of the session; null on a plain link
 * @property {Held | null} held while the phase is "held"
 * @property {{reason: string, message: string} | null} end what the server said at the end:
 *   `reason` is a word, `message` a sentence
 * @property {Trouble | null} trouble why the machine gets errors, while it does
 * @property {EndError | null} error why it failed; null where it ended in order, or goes on
 * @property {number | null} closeCode the WebSocket's, once the link was closed
 */

/** What may pass: a session outlives it. */
const PASSING = new Set(["unreachable", "lost", "silent", "protocol", "too-many", "closed"]);

/** Close codes that end a session all the same. */
const FINAL = new Set([1000, 1005, 4400, 4500]);

/** Milliseconds between two states while nothing changes but the counts. */
const COUNT_INTERVAL = 250;

/** Milliseconds that a server that said goodbye has to close the link with its reasons. */
const GOODBYE_PATIENCE = 1000;

/** @type {State} */
export const IDLE = Object.freeze({
  phase: "idle",
  image: null,
  bytes: 0,
  requests: 0,
  time: 0,
  reads: [],
  lastRead: null,
  roundTrip: null,
  server: null,
  held: null,
  end: null,
  trouble: null,
  error: null,
  closeCode: null,
});

/**
 * Serves one image over one link at a time: joins the two, and tells what happens. A version 1 link
 * that is lost is followed by another. It runs in a Worker or on the caller's thread.
 */
export class Engine {
  #source;
  #emit;
  #address;
  #Socket;
  #reader;
  /** @type {Link | null} */
  #link = null;
  /** @type {Service | null} */
  #service = null;
  #hold;
  /** Whether the session was ever served; until then there is nothing to come back to. */
  #served = false;
  #heardAt = 0;
  #trace;
  /** @type {number | null} when the server was asked for a word, in case it did not answer yet */
  #pingedAt = null;
  #stopping = false;
  /** @type {State} */
  #state;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #countTimer;

  /**
   * @param {LinkAddress} address
   * @param {Source} source
   * @param {(state: State) => void} emit gets each state; the last one has the phase "ended"
   * @param {import("./link.js").SocketClass} [Socket]
   * @param {number} [cache] bytes of the image that are kept in memory at most
   */
  constructor(address, source, emit, Socket = WebSocket, cache = undefined) {
    this.#address = address;
    this.#source = source;
    this.#emit = emit;
    this.#Socket = Socket;
    const { size } = source.info;
    const local = source.blob !== null;
    this.#reader = cached({ size, read: this.#read.bind(this), local }, cache);
    this.#trace = new Trace(source.info.size);
    this.#state = { ...IDLE, phase: "connecting", image: source.info };
    this.#hold = new Hold({
      retry: () => this.#retry(),
      tell: (secondsLeft) => this.#tellHeld({ secondsLeft }),
      expired: () => this.#expired(),
    });
  }

  start() {
    this.#change({});
    this.#connect();
  }

  /** The network came back, or the machine or the tab woke: looks after the link at once. */
  wake() {
    if (this.#state.phase !== "held") {
      this.#link?.doubt();
    } else if (!this.#link?.opened) {
      this.#hold.tryNow();
    }
  }

  #connect() {
    const { url, laterUrl = url, protocols, messages } = this.#address;
    const address = { url: this.#served ? laterUrl : url, protocols, messages };
    try {
      this.#link = new Link(address, this.#linkListener(), this.#Socket);
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      const reason = `"${this.#address.url}" can't be connected to: ${message}`;
      this.#end({ code: "bad-address", reason, closeCode: null }, null);
    }
  }

  /** Ends in order; the state "ended" follows. */
  stop() {
    this.#stopping = true;
    this.#service?.stop();
    if (this.#address.messages) {
      this.#link?.sendMessage({ type: "bye" });
    }
    this.#link?.close();
    if (this.#state.phase === "held") {
      this.#end(null, null);
    }
  }

  #retry() {
    this.#link?.abandon();
    this.#connect();
  }

  /** @returns {import("./link.js").LinkListener} */
  #linkListener() {
    return {
      opened: () => this.#serve(),
      data: (bytes) => this.#service?.receive(bytes),
      message: (message) => this.#hear(message),
      closed: (end) => this.#closed(end),
    };
  }

  #serve() {
    const link = /** @type {Link} */ (this.#link);
    const { info } = this.#source;
    if (this.#address.messages) {
      link.sendMessage({ type: "image", ...info });
    }
    const description = `a read-only image of ${info.size} bytes, served by nbd.js`;
    this.#service = new Service(
      { name: info.name, description, size: info.size },
      this.#reader,
      link,
      {
        begun: () => this.#begun(),
        answered: (bytes, offset) => this.#count(bytes, offset),
        ended: (error) => this.#left(error),
      },
    );
    this.#service.start();
  }

  #begun() {
    this.#served = true;
    this.#hold.served();
    this.#change({ phase: "serving", held: null });
    this.#ping();
  }

  /** @param {ProtocolError | null} error why the client does not go on */
  #left(error) {
    const link = /** @type {Link} */ (this.#link);
    if (error !== null) {
      link.reject(error.message);
    } else if (this.#address.messages) {
      // Closing now would lose the message that says why.
      setTimeout(() => link.close(), GOODBYE_PATIENCE);
    } else {
      link.close();
    }
  }

  /** @param {Record<string, unknown>} message */
  #hear({ type, ...rest }) {
    if (type === "state") {
      this.#change({ server: /** @type {any} */ (rest) });
    } else if (type === "beat") {
      this.#ping();
    } else if (type === "pong" && this.#pingedAt !== null) {
      const roundTrip = now() - this.#pingedAt;
      this.#pingedAt = null;
      this.#change({ roundTrip });
    } else if (type === "end") {
      const { reason, message } = rest;
      this.#change({ end: { reason: String(reason ?? ""), message: String(message ?? "") } });
    }
  }

  /** One at a time: a server that doesn't know it is not asked again. */
  #ping() {
    if (this.#address.messages && this.#pingedAt === null) {
      this.#pingedAt = now();
      this.#link?.sendMessage({ type: "ping" });
    }
  }

  /** @param {LinkEnd} end */
  #closed({ closeCode, error }) {
    // What it still reads is dropped.
    this.#service?.stop();
    this.#service = null;
    this.#pingedAt = null;
    const cause = error ?? this.#refusedWithoutAWord();
    if (cause !== null && this.#mayComeBack(cause.code, closeCode)) {
      this.#lost(cause);
    } else {
      this.#end(cause && { ...cause, closeCode }, closeCode);
    }
    this.#link = null;
  }

  /**
   * @param {EndError["code"]} code
   * @param {number | null} closeCode
   */
  #mayComeBack(code, closeCode) {
    const passing = PASSING.has(code) && !FINAL.has(closeCode ?? 0);
    const over = this.#stopping || this.#state.end !== null || this.#holdSeconds() === 0;
    return this.#address.messages && this.#served && passing && !over;
  }

  /** @param {Pick<Held, "code" | "reason">} cause */
  #lost({ code, reason }) {
    if (this.#state.phase === "held") {
      this.#hold.tryLater();
    } else {
      this.#heardAt = /** @type {Link} */ (this.#link).heardAt;
      this.#hold.begin(this.#heardAt, this.#holdSeconds());
    }
    this.#change({
      phase: "held",
      roundTrip: null,
      held: { secondsLeft: this.#hold.secondsLeft, code, reason },
    });
  }

  #holdSeconds() {
    return holdSeconds(this.#state.server?.hold);
  }

  /** @param {Partial<Held>} changes */
  #tellHeld(changes) {
    const held = /** @type {Held} */ (this.#state.held);
    this.#change({ held: { ...held, ...changes } });
  }

  #expired() {
    this.#link?.abandon();
    const minutes = Math.round((Date.now() - this.#heardAt) / 60_000);
    const reason =
      `There was no connection for ${minutes < 2 ? "too long" : `${minutes} minutes`}, and the ` +
      "server has given the disk up by now.";
    this.#end({ code: "lost", reason, closeCode: null }, null);
  }

  /** @returns {Pick<EndError, "code" | "reason"> | null} why a link that closed in order failed */
  #refusedWithoutAWord() {
    if (this.#stopping || this.#state.phase === "serving" || this.#state.end !== null) {
      return null;
    }
    return {
      code: "closed",
      reason: "The server closed the connection before it asked for anything; its log may say why.",
    };
  }

  /**
   * Reads, and keeps the state's trouble up to date.
   *
   * @param {number} offset
   * @param {number} length
   */
  async #read(offset, length) {
    try {
      const bytes = await this.#source.read(offset, length);
      if (this.#state.trouble !== null) {
        this.#change({ trouble: null });
      }
      return bytes;
    } catch (error) {
      const { code, message } = /** @type {ImageError} */ (error);
      if (this.#state.trouble?.code !== code) {
        this.#change({ trouble: { code, reason: message } });
      }
      throw error;
    }
  }

  /**
   * @param {number} bytes
   * @param {number} offset
   */
  #count(bytes, offset) {
    this.#state.bytes += bytes;
    this.#state.requests += 1;
    if (bytes > 0) {
      this.#trace.add(offset, bytes);
      this.#state.lastRead = { offset, length: bytes, time: now() };
    }
    this.#countTimer ??= setTimeout(() => this.#change({}), COUNT_INTERVAL);
  }

  /**
   * @param {EndError | null} error
   * @param {number | null} closeCode
   */
  #end(error, closeCode) {
    this.#hold.stop();
    this.#change({ phase: "ended", held: null, error, closeCode });
    clearTimeout(this.#countTimer);
  }

  /** @param {Partial<State>} changes */
  #change(changes) {
    if (this.#state.phase === "ended") {
      return;
    }
    clearTimeout(this.#countTimer);
    this.#countTimer = undefined;
    this.#state = { ...this.#state, ...changes, reads: this.#trace.take(), time: now() };
    this.#emit({ ...this.#state });
  }
}

/** Milliseconds of a clock that all threads of a page share. */
function now() {
  return performance.timeOrigin + performance.now();
}
