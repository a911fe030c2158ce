// A link whose far end is an image of zeros behind a long line: it counts how much it was asked for that has not left.

import { setTimeout } from "node:timers/promises";
import { WebSocket } from "ws";
import { Service } from "../../web/nbd/service.js";
import { atEnd } from "./process.mjs";

/** Answers as a line would that takes `roundTrip` ms and carries `rate` bytes a second. */
export class FarLink {
  /** Bytes that were asked for and did not leave yet: now, and at most. */
  outstanding = 0;
  most = 0;
  /** When the line is free for the next byte, on the clock of `performance.now`. */
  #free = 0;
  /** What was sent before has left. */
  #turn = Promise.resolve();

  /**
   * @param {import("node:test").TestContext} t
   * @param {{url: URL, token: string | null}} server its configuration `0` is linked to
   * @param {{size: number, roundTrip: number, rate: number}} shape
   */
  constructor(t, server, { size, roundTrip, rate }) {
    this.line = { roundTrip, rate };
    this.socket = new WebSocket(new URL("/nbd/0", server.url).href.replace(/^http/, "ws"), [
      String(server.token),
    ]);
    this.socket.binaryType = "arraybuffer";
    atEnd(t, () => this.socket.terminate());
    const reader = {
      /** @param {number} _ @param {number} length */
      read: async (_, length) => {
        this.outstanding += length;
        this.most = Math.max(this.most, this.outstanding);
        return [new Uint8Array(length)];
      },
      prefetch: () => {},
    };
    const transport = {
      send: (/** @type {Uint8Array} */ bytes) => this.#send(bytes),
      backlog: () => 0,
      onceDrained: () => {},
    };
    const listener = {
      begun: () => {},
      answered: (/** @type {number} */ bytes) => this.#answered(bytes),
      ended: () => this.socket.close(1000),
    };
    const service = new Service(
      { name: "far", description: "zeros", size },
      reader,
      transport,
      listener,
    );
    this.socket.on("open", () => service.start());
    this.socket.on("message", (data) =>
      service.receive(new Uint8Array(/** @type {ArrayBuffer} */ (data))),
    );
    this.socket.on("close", () => service.stop());
    this.socket.on("error", () => {});
  }

  /** @param {Uint8Array} bytes a reply's header, or its payload */
  #send(bytes) {
    const { roundTrip, rate } = this.line;
    this.#free = Math.max(performance.now() + roundTrip, this.#free) + (bytes.length * 1000) / rate;
    const at = this.#free;
    this.#turn = this.#turn.then(async () => {
      await setTimeout(Math.max(0, at - performance.now()));
      if (this.socket.readyState === WebSocket.OPEN) this.socket.send(bytes);
    });
  }

  /** @param {number} bytes of an answer that was handed to the line */
  #answered(bytes) {
    this.#turn = this.#turn.then(() => {
      this.outstanding -= bytes;
    });
  }
}
