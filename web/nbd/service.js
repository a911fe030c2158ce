/** @module */

import { ByteQueue, joined } from "./bytes.js";
import { Handshake } from "./handshake.js";
import { Command, Errno, ProtocolError } from "./protocol.js";
import { Transmission } from "./transmission.js";

/** @typedef {import("./handshake.js").Export} Export */
/** @typedef {import("./transmission.js").Request} Request */

/**
 * @typedef {object} Reader where an image's bytes come from
 * @property {(offset: number, length: number) => Promise<Uint8Array[]>} read the bytes in order, in
 *   as many parts as is convenient; rejects with an Error whose message is for people
 * @property {(offset: number, length: number) => void} prefetch a hint; failures stay silent
 */

/**
 * @typedef {object} Transport where replies go
 * @property {(bytes: Uint8Array) => void} send does not keep the bytes
 * @property {() => number} backlog bytes that were handed to `send` and did not leave yet
 * @property {(resume: () => void) => void} onceDrained calls back, later, when the backlog shrank
 */

/**
 * @typedef {object} Listener
 * @property {() => void} begun the handshake is done, requests are answered from now on
 * @property {(bytes: number, offset: number) => void} answered one request more, with so many of the
 *   image's bytes from there on
 * @property {(error: ProtocolError | null) => void} ended the client left in order (null), or broke
 *   a rule. Nothing is sent afterwards
 */

/** Reads under way at once. More gain nothing: browsers queue them one behind the other. */
const MAX_READS = 16;

/** Bytes that those reads may ask for together; one read alone may always run. */
const MAX_READ_BYTES = 32 * 1024 * 1024;

/** Bytes on their way to the client above which no further read is started. */
const MAX_BACKLOG = 16 * 1024 * 1024;

/** Bytes up to which the parts of a reply are sent as one message: a message costs more than such a copy. */
const SHORT = 16 * 1024;

/** Requests that may wait for their turn. Who sends more does not wait for answers. */
const MAX_WAITING = 65536;

/** Serves one image to one NBD client, over anything that carries bytes. */
export class Service {
  #export;
  #reader;
  #transport;
  #listener;
  #input = new ByteQueue();
  #handshake;
  /** @type {Transmission | null} */
  #transmission = null;
  /** @type {Request[]} reads that wait for their turn, from `#nextWaiting` on */
  #waiting = [];
  #nextWaiting = 0;
  #reads = 0;
  #readBytes = 0;
  #throttled = false;
  #disconnecting = false;
  #over = false;

  /**
   * @param {Export} exported
   * @param {Reader} reader
   * @param {Transport} transport
   * @param {Listener} listener
   */
  constructor(exported, reader, transport, listener) {
    this.#export = exported;
    this.#reader = reader;
    this.#transport = transport;
    this.#listener = listener;
    this.#handshake = new Handshake(exported);
  }

  /** Says the first words. */
  start() {
    this.#send(this.#handshake.takeOutput());
  }

  /** Falls silent, whatever is under way. */
  stop() {
    this.#over = true;
    this.#waiting = [];
    this.#nextWaiting = 0;
  }

  /** @param {Uint8Array} bytes from the client; kept, not copied */
  receive(bytes) {
    if (this.#over || this.#disconnecting) {
      return;
    }
    this.#input.push(bytes);
    try {
      this.#understand();
    } catch (error) {
      if (!(error instanceof ProtocolError)) {
        throw error;
      }
      this.#finish(error);
    }
  }

  #understand() {
    if (this.#transmission === null) {
      this.#negotiate();
    }
    if (this.#transmission !== null) {
      this.#acceptRequests(this.#transmission);
    }
  }

  #negotiate() {
    const end = this.#handshake.advance(this.#input);
    this.#send(this.#handshake.takeOutput());
    if (end?.type === "aborted") {
      this.#finish(null);
    } else if (end !== null) {
      this.#transmission = new Transmission(this.#export.size, end.negotiated);
      this.#listener.begun();
    }
  }

  /** @param {Transmission} transmission */
  #acceptRequests(transmission) {
    while (!this.#over && !this.#disconnecting) {
      const incoming = transmission.next(this.#input);
      if (incoming === null) {
        break;
      }
      if (incoming.type === "disconnect") {
        this.#disconnecting = true;
      } else {
        this.#accept(transmission, incoming.request);
      }
    }
    this.#readOn();
  }

  /**
   * Answers at once what needs no reading.
   *
   * @param {Transmission} transmission
   * @param {Request} request
   */
  #accept(transmission, request) {
    const { refusal } = request;
    if (refusal !== null) {
      this.#answer(transmission.error(request, refusal.errno, refusal.message), 0);
    } else if (request.type === Command.READ) {
      this.#wait(request);
    } else if (request.type === Command.BLOCK_STATUS) {
      this.#answer(transmission.blockStatus(request), 0);
    } else {
      if (request.type === Command.CACHE) {
        this.#reader.prefetch(request.offset, request.length);
      }
      this.#answer(transmission.done(request), 0);
    }
  }

  /** @param {Request} request */
  #wait(request) {
    if (this.#waiting.length - this.#nextWaiting >= MAX_WAITING) {
      throw new ProtocolError(`more than ${MAX_WAITING} requests at once`);
    }
    this.#waiting.push(request);
  }

  /** Starts as many of the waiting reads as limits allow. */
  #readOn() {
    while (!this.#over && this.#nextWaiting < this.#waiting.length) {
      const request = this.#waiting[this.#nextWaiting];
      if (!this.#mayRead(request.length)) {
        return;
      }
      this.#nextWaiting += 1;
      this.#read(request);
    }
    if (!this.#over) {
      this.#waiting = [];
      this.#nextWaiting = 0;
      this.#finishIfDisconnected();
    }
  }

  /** @param {number} length */
  #mayRead(length) {
    if (this.#transport.backlog() > MAX_BACKLOG) {
      this.#resumeLater();
      return false;
    }
    const room = this.#reads < MAX_READS && this.#readBytes + length <= MAX_READ_BYTES;
    return room || this.#reads === 0;
  }

  #resumeLater() {
    if (!this.#throttled) {
      this.#throttled = true;
      this.#transport.onceDrained(() => {
        this.#throttled = false;
        this.#readOn();
      });
    }
  }

  /** @param {Request} request */
  async #read(request) {
    const transmission = /** @type {Transmission} */ (this.#transmission);
    this.#reads += 1;
    this.#readBytes += request.length;
    let reply;
    let served = 0;
    try {
      reply = transmission.data(request, await this.#reader.read(request.offset, request.length));
      served = request.length;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      reply = transmission.error(request, Errno.EIO, message);
    }
    this.#reads -= 1;
    this.#readBytes -= request.length;
    this.#answer(reply, served, request.offset);
    this.#readOn();
  }

  /**
   * @param {Uint8Array[]} reply
   * @param {number} served bytes of the image in it
   * @param {number} [offset] where they begin
   */
  #answer(reply, served, offset = 0) {
    if (!this.#over) {
      this.#send(reply);
      this.#listener.answered(served, offset);
    }
  }

  /** @param {Uint8Array[]} parts */
  #send(parts) {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    for (const message of length > SHORT || parts.length < 2 ? parts : [joined(parts)]) {
      this.#transport.send(message);
    }
  }

  #finishIfDisconnected() {
    if (this.#disconnecting && this.#reads === 0) {
      this.#finish(null);
    }
  }

  /** @param {ProtocolError | null} error */
  #finish(error) {
    if (!this.#over) {
      this.stop();
      this.#listener.ended(error);
    }
  }
}
