// A bad line: a TCP proxy on loopback that delays, limits, cuts, and goes silent.
//
//   node tests/lib/line.mjs LISTEN TARGET [--delay MS] [--rate BIT/S]
//
// LISTEN and TARGET are PORT or HOST:PORT. Standard input takes a command a line: cut, silence, strand, restore,
// delay MS, rate BIT/S.

import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

/** The longest piece that is sent at once, in bytes. */
const PIECE = 16 << 10;
/** What a direction holds besides what the delay makes it hold, in bytes. Then its sender has to wait. */
const ROOM = 256 << 10;

/** @typedef {import("node:net").Socket} Socket */
/** @typedef {{delay?: number, rate?: number}} Shape in milliseconds each way; in bits a second each way, 0: no limit */

/** A line between those who connect to it and a server. */
export class Line {
  /** @type {Set<Pair>} */
  #pairs = new Set();
  /** What `cutAfter` waits for: bytes. */
  #left = Number.POSITIVE_INFINITY;
  #onCut = () => {};

  /** @param {number} port of the server @param {Shape} [shape] @param {string} [host] */
  constructor(port, { delay = 0, rate = 0 } = {}, host = "127.0.0.1") {
    this.target = { port, host };
    this.delay = delay;
    this.rate = rate;
    this.silent = false;
    /** When each way is free for the next byte, on the clock of `performance.now`. */
    this.free = [0, 0];
    this.server = createServer({ allowHalfOpen: true }, (client) => this.#connect(client));
  }

  /** @param {number} [port] @param {string} [host] */
  async listen(port = 0, host = "127.0.0.1") {
    this.server.listen(port, host);
    await once(this.server, "listening");
    return this;
  }

  get port() {
    return /** @type {import("node:net").AddressInfo} */ (this.server.address()).port;
  }

  /** How many connections there are, ghosts included. */
  get connections() {
    return this.#pairs.size;
  }

  /** Resets every connection, on both sides. */
  cut() {
    for (const pair of this.#pairs) pair.reset();
  }

  /**
   * Resets every connection, on both sides, when so many more bytes have passed, both ways together.
   *
   * @param {number} bytes
   * @returns {Promise<void>} then; nothing passes before whoever awaits it has gone on
   */
  cutAfter(bytes) {
    return new Promise((cut) => {
      this.#left = bytes;
      this.#onCut = cut;
    });
  }

  /** @param {number} bytes that have been delivered */
  passed(bytes) {
    this.#left -= bytes;
    if (this.#left > 0) return;
    this.#left = Number.POSITIVE_INFINITY;
    this.cut();
    this.#onCut();
  }

  /** Lets nothing pass any more, not even an end, until `restore`. */
  silence() {
    this.silent = true;
  }

  /** Lets nothing pass any more on the connections that there are, for good; new ones work. */
  strand() {
    for (const pair of this.#pairs) pair.stranded = true;
  }

  /** Ends `silence`: what waited goes on. */
  restore() {
    this.silent = false;
    for (const pair of this.#pairs) pair.go();
  }

  close() {
    this.server.close();
    this.cut();
  }

  /** @param {Socket} client */
  #connect(client) {
    const server = createConnection({ ...this.target, allowHalfOpen: true });
    const pair = new Pair(this, client, server);
    this.#pairs.add(pair);
    pair.onGone = () => this.#pairs.delete(pair);
  }
}

/** One connection, and its continuation. */
class Pair {
  stranded = false;
  onGone = () => {};

  /** @param {Line} line @param {Socket} client @param {Socket} server */
  constructor(line, client, server) {
    this.line = line;
    this.sockets = [client, server];
    this.ways = [new Way(this, 0, client, server), new Way(this, 1, server, client)];
    for (const [index, socket] of this.sockets.entries()) {
      socket.setNoDelay(true);
      // "close" follows and tells the other side.
      socket.on("error", () => {});
      socket.on("close", () => this.ways[index].push(null));
    }
  }

  get silent() {
    return this.stranded || this.line.silent;
  }

  go() {
    for (const way of this.ways) way.go();
  }

  reset() {
    for (const socket of this.sockets) {
      // Node.js can't reset a socket whose end is on its way, and would never exit.
      if (socket.writableEnded) socket.destroy();
      else if (!socket.destroyed) socket.resetAndDestroy();
    }
    for (const way of this.ways) way.stop();
    this.onGone();
  }
}

/** One direction of a connection. */
class Way {
  /** @type {{at: number, piece: Buffer | "end" | null}[]} an end, or null: the sender is gone */
  #queue = [];
  #held = 0;
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #waiting = false;

  /** @param {Pair} pair @param {number} index @param {Socket} from @param {Socket} to */
  constructor(pair, index, from, to) {
    this.pair = pair;
    this.index = index;
    this.from = from;
    this.to = to;
    from.on("data", (data) => {
      for (let at = 0; at < data.length; at += PIECE) this.push(data.subarray(at, at + PIECE));
    });
    from.on("end", () => this.push("end"));
    to.on("drain", () => {
      this.#waiting = false;
      this.go();
    });
  }

  /** @param {Buffer | "end" | null} piece */
  push(piece) {
    const { line } = this.pair;
    const now = performance.now();
    const length = piece instanceof Buffer ? piece.length : 0;
    const start = Math.max(now, line.free[this.index]);
    const sent = start + (line.rate > 0 ? (length * 8000) / line.rate : 0);
    line.free[this.index] = sent;
    this.#queue.push({ at: sent + line.delay, piece });
    this.#held += length;
    if (this.#held > this.#room()) this.from.pause();
    this.go();
  }

  /** Delivers what has arrived. */
  go() {
    clearTimeout(this.#timer);
    while (this.#queue.length > 0 && !this.pair.silent && !this.#waiting) {
      const [{ at, piece }] = this.#queue;
      const left = at - performance.now();
      if (left > 0) {
        this.#timer = setTimeout(() => this.go(), left);
        return;
      }
      this.#queue.shift();
      this.#deliver(piece);
    }
  }

  stop() {
    clearTimeout(this.#timer);
    this.#queue = [];
  }

  /** @param {Buffer | "end" | null} piece */
  #deliver(piece) {
    if (piece === null) {
      this.pair.reset();
      return;
    }
    if (piece === "end") {
      this.to.end();
      return;
    }
    this.#held -= piece.length;
    if (this.#held <= this.#room()) this.from.resume();
    this.#waiting = !this.to.write(piece) && !this.to.destroyed;
    this.pair.line.passed(piece.length);
  }

  /** A long line is full only when the sender has filled it. */
  #room() {
    const { delay, rate } = this.pair.line;
    return ROOM + (rate > 0 ? (rate * delay) / 8000 : delay * 100_000);
  }
}

/** @param {string} text @returns {[number, string]} port and host */
function address(text) {
  const [, host, port] = /^(?:(.*):)?(\d+)$/.exec(text) ?? [];
  if (port === undefined) throw new Error(`${text} is neither PORT nor HOST:PORT`);
  return [Number(port), host ?? "127.0.0.1"];
}

/** @param {Line} line @param {string} text */
function obey(line, text) {
  const [command, value] = text.trim().split(/\s+/);
  switch (command) {
    case "cut":
    case "silence":
    case "strand":
    case "restore":
      line[command]();
      break;
    case "delay":
    case "rate":
      line[command] = Number(value);
      break;
    default:
      console.error(`${command} is none of cut, silence, strand, restore, delay MS, rate BIT/S`);
  }
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { delay: { type: "string" }, rate: { type: "string" } },
  });
  if (positionals.length !== 2) throw new Error("LISTEN and TARGET are to be given");
  const [port, host] = address(positionals[1]);
  const shape = { delay: Number(values.delay ?? 0), rate: Number(values.rate ?? 0) };
  const line = await new Line(port, shape, host).listen(...address(positionals[0]));
  console.log(`127.0.0.1:${line.port}`);
  for await (const text of createInterface({ input: process.stdin })) obey(line, text);
  line.close();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
