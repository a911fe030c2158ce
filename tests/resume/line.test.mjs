// The line that the other tests use: as slow and as bad as it is asked to be.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { Line } from "../lib/line.mjs";
import { atEnd, background, waitFor } from "../lib/process.mjs";
import { ROOT } from "../lib/program.mjs";

/** @typedef {import("node:net").Socket} Socket */

/**
 * A server that sends back what it gets.
 *
 * @param {import("node:test").TestContext} t
 */
async function echo(t) {
  /** @type {Set<Socket>} */
  const sockets = new Set();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    socket.pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  atEnd(t, () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { port, sockets };
}

/**
 * @param {import("node:test").TestContext} t
 * @param {import("../lib/line.mjs").Shape} [shape]
 */
async function lined(t, shape) {
  const server = await echo(t);
  const line = await new Line(server.port, shape).listen();
  atEnd(t, () => line.close());
  const open = async () => {
    const socket = createConnection(line.port, "127.0.0.1");
    atEnd(t, () => socket.destroy());
    await once(socket, "connect");
    return socket;
  };
  return { line, server, open, socket: await open() };
}

/** @param {Socket} socket @param {number} size @returns {Promise<Buffer>} as many bytes */
async function receive(socket, size) {
  /** @type {Buffer[]} */
  const parts = [];
  let length = 0;
  while (length < size) {
    const [data] = await once(socket, "data");
    parts.push(data);
    length += data.length;
  }
  return Buffer.concat(parts);
}

/** @param {Socket} socket @param {Buffer} data @returns {Promise<number>} how long it takes to come back, in ms */
async function roundTrip(socket, data) {
  const start = performance.now();
  socket.write(data);
  assert.ok((await receive(socket, data.length)).equals(data));
  return performance.now() - start;
}

/** @param {number} size */
const pattern = (size) => Buffer.from(Uint8Array.from({ length: size }, (_, at) => at % 251));

test("what passes takes the delay each way", async (t) => {
  const { socket } = await lined(t, { delay: 100 });
  await roundTrip(socket, pattern(10));
  const times = [];
  for (let index = 0; index < 5; index++) times.push(await roundTrip(socket, pattern(10)));
  const best = Math.min(...times);
  assert.ok(best >= 198 && best < 300, `${times} ms there and back, asked for 200`);
});

test("what passes keeps to the rate, and comes whole", async (t) => {
  const { socket } = await lined(t, { rate: 8_000_000, delay: 20 });
  // 1 MB/s; both ways at once.
  const time = await roundTrip(socket, pattern(1_500_000));
  assert.ok(time >= 1500 && time < 3500, `${time} ms, asked for 1540`);
});

test("without a rate nothing is slow", async (t) => {
  const { socket } = await lined(t);
  const size = 64 << 20;
  const time = await roundTrip(socket, Buffer.alloc(size, 7));
  assert.ok(time < 10_000, `${time} ms for ${size} bytes`);
});

test("a cut line is a reset on both sides", async (t) => {
  const { line, server, socket } = await lined(t);
  await roundTrip(socket, pattern(10));
  const [far] = server.sockets;
  const resets = [once(socket, "error"), once(far, "error")];
  line.cut();
  for (const [error] of await Promise.all(resets)) assert.equal(error.code, "ECONNRESET");
  assert.equal(line.connections, 0);
});

test("a line is cut in the middle of what passes", async (t) => {
  const { line, socket } = await lined(t);
  await roundTrip(socket, pattern(10));
  let heard = 0;
  socket.on("data", (data) => {
    heard += data.length;
  });
  const reset = once(socket, "error");
  const cut = line.cutAfter(100_000);
  socket.write(pattern(1_000_000));
  await cut;
  assert.equal((await reset)[0].code, "ECONNRESET");
  assert.ok(heard <= 100_000, `${heard} bytes came back`);
});

test("a silent line passes nothing, not even an end, until it is restored", async (t) => {
  const { line, server, open, socket } = await lined(t);
  const leaving = await open();
  await roundTrip(socket, pattern(10));
  await roundTrip(leaving, pattern(10));
  line.silence();
  let heard = 0;
  socket.on("data", (data) => {
    heard += data.length;
  });
  socket.write(pattern(1000));
  leaving.destroy();
  const late = await open();
  late.write(pattern(5));
  await new Promise((passed) => setTimeout(passed, 300));
  assert.equal(heard, 0);
  assert.equal(server.sockets.size >= 2, true);
  line.restore();
  await waitFor("what waited arrives", () => heard === 1000);
  await receive(late, 5);
  await waitFor("the end arrives", () => line.connections === 2);
});

test("a stranded connection is silent for good, and a new one is not", async (t) => {
  const { line, open, socket } = await lined(t);
  await roundTrip(socket, pattern(10));
  line.strand();
  let heard = 0;
  socket.on("data", () => heard++);
  socket.write(pattern(10));
  await roundTrip(await open(), pattern(1000));
  line.restore();
  await roundTrip(await open(), pattern(1000));
  assert.equal(heard, 0);
});

test("the command line takes commands", async (t) => {
  const server = await echo(t);
  const program = join(ROOT, "tests/lib/line.mjs");
  const line = background(t, "node", [program, "0", String(server.port), "--delay", "50"], {
    stdio: ["pipe", "pipe", "pipe"],
  });
  const [, port] = await line.says(/^127\.0\.0\.1:(\d+)$/m);
  const socket = createConnection(Number(port), "127.0.0.1");
  atEnd(t, () => socket.destroy());
  assert.ok((await roundTrip(socket, pattern(10))) >= 99);
  const reset = once(socket, "error");
  line.child.stdin?.write("cut\n");
  assert.equal((await reset)[0].code, "ECONNRESET");
  line.child.stdin?.write("hop\n");
  await line.says(/hop is none of/);
});
