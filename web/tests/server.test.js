// The facade, as pages use it, against a real WebSocket server.

import assert from "node:assert/strict";
import { openAsBlob } from "node:fs";
import { appendFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { WebSocket } from "ws";
import DefaultServer, { ImageError, NBDServer } from "../nbd/nbd.js";
import { pattern, patternImage, until } from "./lib/fakes.js";
import { startMachine } from "./lib/machine.js";

/** @typedef {import("../nbd/nbd.js").State} State */

const SocketClass = /** @type {any} */ (WebSocket);
const FILE = new File([pattern(0, 100_000)], "disk.iso", { lastModified: 1_700_000_000_000 });

/**
 * @param {NBDServer} server
 * @param {State["phase"]} phase
 */
function reaches(server, phase) {
  return until(() => server.state.phase === phase);
}

test("serves a file on a version 1 link", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(`${machine.url}/nbd/0`, FILE, { WebSocket: SocketClass });
  /** @type {State[]} */
  const states = [];
  server.addEventListener("state", (event) => states.push(event.detail));
  assert.equal(server.state.phase, "idle");
  server.start();
  assert.equal(server.state.phase, "connecting");
  const link = await machine.accept();
  assert.equal(await link.negotiate(), 100_000);
  assert.deepEqual(await link.read(5, 70_000), pattern(5, 70_000));
  assert.deepEqual(link.messages, [
    { type: "image", name: "disk.iso", size: 100_000, modified: 1_700_000_000_000 },
    { type: "ping" },
  ]);
  assert.match(String(server.session), /^[0-9a-f]{32}$/);
  assert.equal(link.path, `/nbd/0?session=${server.session}&v=1`);
  server.stop();
  assert.equal((await link.untilClosed()).code, 1000);
  await reaches(server, "ended");
  assert.deepEqual(link.messages.at(-1), { type: "bye" });
  const last = states[states.length - 1];
  assert.equal(last, server.state);
  assert.deepEqual([last.error, last.bytes, last.requests], [null, 70_000, 1]);
  assert.deepEqual(
    [...new Set(states.map(({ phase }) => phase))],
    ["connecting", "serving", "ended"],
  );
});

test("the default export is the same class", () => {
  assert.equal(DefaultServer, NBDServer);
});

test("the endpoint says which kind of link it is, unless the options do", () => {
  /** @param {string} endpoint @param {import("../nbd/nbd.js").Options} options */
  const session = (endpoint, options) => new NBDServer(endpoint, FILE, options).session;
  assert.notEqual(session("ws://h/nbd/0", {}), null);
  assert.notEqual(session("wss://h/prefix/nbd/lab", {}), session("wss://h/prefix/nbd/lab", {}));
  assert.equal(session("ws://h/", {}), null);
  assert.equal(session("ws://h/vm/0/0", {}), null);
  assert.equal(session("ws://h/nbd/0", { session: false }), null);
  assert.notEqual(session("ws://h/other", { session: true }), null);
  const id = "0123456789abcdef0123456789abcdef";
  assert.equal(session("ws://h/nbd/0", { session: id }), id);
  assert.equal(session(`ws://h/nbd/0?session=${id}&v=1`, {}), id);
});

test("webui-vue's form: a plain link, the token as sole subprotocol, its callbacks", async (t) => {
  const machine = await startMachine(t);
  machine.server.options.handleProtocols = (protocols) => [...protocols].join();
  useGlobalWebSocket(t);
  const server = new NBDServer(`${machine.url}/vm/0/0`, FILE, "Slot_0", "secret-token");
  /** @type {unknown[]} */
  const called = [];
  server.socketStarted = () => called.push("started");
  server.socketClosed = (code) => called.push(code);
  server.errorReadingFile = () => called.push("unreadable");
  server.start();
  assert.deepEqual(called, ["started"], "during start()");
  const link = await machine.accept();
  assert.equal(link.socket.protocol, "secret-token");
  assert.equal(link.path, "/vm/0/0");
  await link.negotiate();
  assert.deepEqual(await link.read(0, 10), pattern(0, 10));
  link.socket.close(1000);
  await reaches(server, "ended");
  assert.deepEqual(called, ["started", 1000]);
  assert.deepEqual(link.messages, []);
  assert.equal(server.id, "Slot_0");
});

/** @param {import("node:test").TestContext} t */
function useGlobalWebSocket(t) {
  const scope = /** @type {any} */ (globalThis);
  const before = scope.WebSocket;
  scope.WebSocket = WebSocket;
  t.after(() => {
    scope.WebSocket = before;
  });
}

test("works through a Proxy, as Vue's reactive() makes one", async (t) => {
  const machine = await startMachine(t);
  useGlobalWebSocket(t);
  const raw = new NBDServer(machine.url, FILE, "0", undefined);
  const server = new Proxy(raw, {
    get: (target, key, receiver) => Reflect.get(target, key, receiver),
    set: (target, key, value, receiver) => Reflect.set(target, key, value, receiver),
  });
  /** @type {unknown[]} */
  const called = [];
  server.socketStarted = () => called.push("started");
  server.socketClosed = (code) => called.push(code);
  server.addEventListener("state", ({ detail }) => called.push(detail.phase));
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  assert.equal(server.state.phase, "serving");
  server.stop();
  await reaches(server, "ended");
  for (const expected of ["started", "connecting", "serving", "ended", 1000]) {
    assert.ok(called.includes(expected), String(expected));
  }
});

test("socketClosed is called once for each start, whatever ends it", async (t) => {
  const machine = await startMachine(t);
  useGlobalWebSocket(t);
  const server = new NBDServer(machine.url, FILE, "0", undefined);
  /** @type {number[]} */
  const codes = [];
  server.socketClosed = (code) => codes.push(code);
  server.start();
  const link = await machine.accept();
  link.socket.terminate();
  await reaches(server, "ended");
  assert.deepEqual(codes, [1006]);
  server.stop();
  server.start();
  await machine.accept();
  server.stop();
  server.stop();
  await reaches(server, "ended");
  assert.equal(codes.length, 2);
});

test("a second start() while it runs does nothing; after the end it begins anew with its session", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(`${machine.url}/nbd/0`, FILE, { WebSocket: SocketClass });
  server.start();
  server.start();
  const first = await machine.accept();
  await first.negotiate();
  await first.read(0, 1000);
  server.start();
  first.socket.close(1000);
  await reaches(server, "ended");
  assert.equal(server.state.bytes, 1000);
  server.start();
  const second = await machine.accept();
  assert.equal(second.path, first.path);
  assert.equal(server.state.bytes, 0);
  server.stop();
});

test("stop() before anything was opened ends at once, without a connection", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(machine.url, FILE, { WebSocket: SocketClass });
  server.stop();
  assert.equal(server.state.phase, "idle");
  server.start();
  server.stop();
  assert.deepEqual([server.state.phase, server.state.error], ["ended", null]);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(machine.server.clients.size, 0);
});

test("a listener may call stop() at any moment", async (t) => {
  for (const moment of [1, 2, 3]) {
    const machine = await startMachine(t);
    const server = new NBDServer(machine.url, FILE, { WebSocket: SocketClass });
    let seen = 0;
    server.addEventListener("state", () => {
      seen += 1;
      if (seen === moment) server.stop();
    });
    server.start();
    if (moment === 3) {
      const link = await machine.accept();
      await link.negotiate();
    }
    await reaches(server, "ended");
    assert.equal(server.state.error, null);
    await until(() => machine.server.clients.size === 0);
  }
});

test("no image, an empty one and a bad address end with the reason, and connect nowhere", async () => {
  for (const [endpoint, image, code] of /** @type {[string, any, string][]} */ ([
    ["ws://127.0.0.1:1/", undefined, "no-image"],
    ["ws://127.0.0.1:1/", new File([], "empty.iso"), "empty-image"],
    ["ftp://127.0.0.1/", FILE, "bad-address"],
    ["http://[", FILE, "bad-address"],
    ["/nbd/0", FILE, "bad-address"],
  ])) {
    const server = new NBDServer(endpoint, image, { WebSocket: SocketClass });
    /** @type {unknown[]} */
    const called = [];
    server.onlog = (line) => called.push(line);
    server.socketClosed = (closeCode) => called.push(closeCode);
    server.start();
    await reaches(server, "ended");
    assert.equal(server.state.error?.code, code);
    assert.equal(called.at(-1), 1006);
    assert.ok(called.includes(server.state.error?.reason));
  }
});

test("an address without a server is unreachable", async () => {
  const server = new NBDServer("ws://127.0.0.1:1/", FILE, { WebSocket: SocketClass });
  server.start();
  await reaches(server, "ended");
  assert.equal(server.state.error?.code, "unreachable");
});

test("http addresses become WebSocket addresses", async (t) => {
  const machine = await startMachine(t);
  const endpoint = new URL(`${machine.url.replace("ws:", "http:")}/nbd/7#part`);
  const server = new NBDServer(endpoint, FILE, { WebSocket: SocketClass });
  server.start();
  const link = await machine.accept();
  assert.match(link.path, /^\/nbd\/7\?session=/);
  server.stop();
});

test("a file that changed gives EIO, a state that says so, and errorReadingFile once", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "nbd-server-"));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, "disk.iso");
  await writeFile(path, pattern(0, 10_000));
  const machine = await startMachine(t);
  const options = { WebSocket: SocketClass, name: "disk.iso" };
  const server = new NBDServer(machine.url, await openAsBlob(path), options);
  let unreadable = 0;
  server.errorReadingFile = () => {
    unreadable += 1;
  };
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  await appendFile(path, "x");
  assert.equal(await link.read(0, 512), 5);
  assert.equal(await link.read(512, 512), 5);
  assert.equal(server.state.phase, "serving");
  assert.equal(server.state.trouble?.code, "image-changed");
  assert.match(String(server.state.trouble?.reason), /disk.iso.*changed on disk/);
  assert.equal(unreadable, 1);
  server.stop();
});

test("the log has lines for what happens and none for requests", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(`${machine.url}/nbd/0`, FILE, { WebSocket: SocketClass });
  /** @type {string[]} */
  const lines = [];
  server.onlog = (line) => lines.push(line);
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  link.say({ type: "state", phase: "attached", device: "/dev/nbd0" });
  for (let count = 0; count < 50; count++) {
    await link.read(count * 512, 512);
  }
  link.socket.close(4409, "In use by somebody.");
  await reaches(server, "ended");
  assert.deepEqual(lines, [
    `Connecting to ${machine.url}/nbd/0`,
    'Serving "disk.iso", 100000 bytes',
    "The server says: attached, /dev/nbd0",
    "In use by somebody.",
  ]);
});

test("a callback that throws does not stop the disk", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(machine.url, FILE, { WebSocket: SocketClass });
  /** @type {unknown[]} */
  const thrown = [];
  const previous = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => thrown.push(error));
  t.after(() => {
    process.removeAllListeners("uncaughtException");
    for (const listener of previous) {
      process.on("uncaughtException", listener);
    }
  });
  server.onlog = () => {
    throw new Error("my own mistake");
  };
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  assert.deepEqual(await link.read(0, 4), pattern(0, 4));
  server.stop();
  await reaches(server, "ended");
  assert.ok(thrown.length >= 3);
});

test("an image far beyond 4 GiB is served by its read()", async (t) => {
  const machine = await startMachine(t);
  const size = Number.MAX_SAFE_INTEGER;
  const server = new NBDServer(machine.url, patternImage(size), { WebSocket: SocketClass });
  server.start();
  const link = await machine.accept();
  assert.equal(await link.negotiate(), size);
  const offset = 2 ** 32 * 512 + 3;
  assert.deepEqual(await link.read(offset, 100), pattern(offset, 100));
  assert.deepEqual(await link.read(size - 1, 1), pattern(size - 1, 1));
  server.stop();
});

test("errors of images can be told from others", () => {
  assert.ok(new ImageError("no-image", "") instanceof Error);
});
