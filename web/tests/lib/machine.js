// A machine that wants a disk: a WebSocket server whose every connection is an NBD client.

import { once } from "node:events";
import { WebSocketServer } from "ws";
import { Option, OptionReply } from "../../nbd/protocol.js";
import { bytes, CLIENT_FLAGS, goData, option, Reader, request } from "./client.js";

/** @typedef {import("ws").WebSocket} Socket */

/** @param {import("node:test").TestContext} t closes the server at the end */
export async function startMachine(t) {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  t.after(() => {
    for (const socket of server.clients) {
      socket.terminate();
    }
    server.close();
  });
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const queue = /** @type {Connection[]} */ ([]);
  server.on("connection", (socket, incoming) => queue.push(new Connection(socket, incoming)));
  return {
    url: `ws://127.0.0.1:${port}`,
    server,
    async accept() {
      while (queue.length === 0) {
        await once(server, "connection");
      }
      return /** @type {Connection} */ (queue.shift());
    },
  };
}

/** One link, seen from the machine. */
export class Connection {
  /** @type {any[]} messages in JSON that came */
  messages = [];
  #received = bytes();
  #changed = () => {};
  /** @type {{code: number, reason: string} | null} */
  closed = null;

  /**
   * @param {Socket} socket
   * @param {import("node:http").IncomingMessage} incoming
   */
  constructor(socket, incoming) {
    this.socket = socket;
    this.path = incoming.url ?? "";
    socket.on("message", (data, isBinary) => {
      if (isBinary) {
        this.#received = bytes(this.#received, /** @type {Buffer} */ (data));
      } else {
        this.messages.push(JSON.parse(String(data)));
      }
      this.#changed();
    });
    socket.on("close", (code, reason) => {
      this.closed = { code, reason: String(reason) };
      this.#changed();
    });
  }

  /** @param {() => boolean} condition */
  async until(condition) {
    while (!condition()) {
      await new Promise((resolve) => {
        this.#changed = () => resolve(undefined);
      });
    }
  }

  /** @param {number} count */
  async take(count) {
    await this.until(() => this.#received.length >= count);
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  /** @param {object} message */
  say(message) {
    this.socket.send(JSON.stringify(message));
  }

  /** Does the handshake; gives the image's size. */
  async negotiate() {
    await this.take(18);
    this.socket.send(bytes(CLIENT_FLAGS, option(Option.GO, goData(""))));
    const info = new Reader(await this.take(20 + 12)).optionReply();
    const ack = new Reader(await this.take(20)).optionReply();
    if (ack.type !== OptionReply.ACK) {
      throw new Error("the handshake was refused");
    }
    return Number(new Reader(info.data.subarray(2)).u64());
  }

  /**
   * @param {number} offset
   * @param {number} length
   * @returns {Promise<Uint8Array | number>} the bytes, or the error's number
   */
  async read(offset, length) {
    this.socket.send(request({ type: 0, offset, length }));
    const { errno } = new Reader(await this.take(16)).simpleReply();
    return errno === 0 ? this.take(length) : errno;
  }

  async untilClosed() {
    await this.until(() => this.closed !== null);
    return /** @type {{code: number, reason: string}} */ (this.closed);
  }
}
