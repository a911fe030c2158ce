// The facade with a Worker, which here is one of Node's threads.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { NBDServer } from "../nbd/nbd.js";
import { pattern, patternImage, until } from "./lib/fakes.js";
import { startMachine } from "./lib/machine.js";
import { WebWorker } from "./lib/web-worker.js";

const scope = /** @type {any} */ (globalThis);
const FILE = new File([pattern(0, 100_000)], "disk.iso");

beforeEach((t) => {
  WebWorker.made.length = 0;
  WebWorker.replacement = null;
  scope.Worker = WebWorker;
  /** @type {import("node:test").TestContext} */ (t).after(() => {
    for (const worker of WebWorker.made) {
      worker.terminate();
    }
    delete scope.Worker;
    delete scope.WebSocket;
  });
});

/** @param {NBDServer} server */
async function stop(server) {
  server.stop();
  await until(() => server.state.phase === "ended");
}

test("a File is read and sent in a Worker from the library's own address", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(`${machine.url}/nbd/0`, FILE, {});
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  assert.deepEqual(await link.read(10, 1000), pattern(10, 1000));
  assert.equal(WebWorker.made[0].url.href, new URL("../nbd/worker.js", import.meta.url).href);
  assert.deepEqual(WebWorker.made[0].options, { type: "module" });
  assert.equal(server.state.phase, "serving");
  await stop(server);
  assert.deepEqual([server.state.error, server.state.bytes], [null, 1000]);
});

test("a read() is called here, and its buffers are given to the Worker", async (t) => {
  const machine = await startMachine(t);
  /** @type {ArrayBuffer[]} */
  const given = [];
  const image = patternImage(2 ** 40);
  const server = new NBDServer(
    machine.url,
    {
      size: image.size,
      async read(offset, length) {
        const { buffer } = await image.read(offset, length);
        given.push(buffer);
        return buffer;
      },
    },
    {},
  );
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  const offset = 2 ** 39;
  assert.deepEqual(await link.read(offset, 5000), pattern(offset, 5000));
  assert.equal(given[0].byteLength, 0, "transferred, not copied");
  await stop(server);
});

test("a read() that fails is EIO, with its reason in the state", async (t) => {
  const machine = await startMachine(t);
  const read = () => Promise.reject(new DOMException("gone", "NotFoundError"));
  const server = new NBDServer(machine.url, { size: 1000, name: "usb", read }, {});
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  assert.equal(await link.read(0, 10), 5);
  await until(() => server.state.trouble !== null);
  assert.equal(server.state.trouble?.code, "image-gone");
  await stop(server);
});

test("without Workers, or where they are not wanted, it runs here", async (t) => {
  const machine = await startMachine(t);
  scope.WebSocket = WebSocket;
  for (const absent of [true, false]) {
    scope.Worker = absent ? undefined : WebWorker;
    const server = new NBDServer(machine.url, FILE, absent ? {} : { worker: false });
    server.start();
    const link = await machine.accept();
    await link.negotiate();
    assert.equal(WebWorker.made.length, 0);
    await stop(server);
  }
});

test("where the Worker fails to load or is forbidden, it runs here, and connects once", async (t) => {
  const machine = await startMachine(t);
  scope.WebSocket = WebSocket;
  const missing = "file:///nowhere/worker.js";
  const forbidden = class {
    constructor() {
      throw new DOMException("policy", "SecurityError");
    }
  };
  for (const [Worker, replacement] of [
    [WebWorker, missing],
    [forbidden, null],
  ]) {
    scope.Worker = Worker;
    WebWorker.replacement = /** @type {string | null} */ (replacement);
    const server = new NBDServer(machine.url, FILE, {});
    server.start();
    const link = await machine.accept();
    await link.negotiate();
    assert.deepEqual(await link.read(0, 9), pattern(0, 9));
    assert.equal(machine.server.clients.size, 1);
    await stop(server);
    await link.untilClosed();
  }
});

test("stop() before the Worker is there ends in order", async (t) => {
  const machine = await startMachine(t);
  const server = new NBDServer(machine.url, FILE, {});
  server.start();
  await until(() => WebWorker.made.length === 1);
  await stop(server);
  assert.equal(server.state.error, null);
});

test("a Worker that breaks ends it as an internal error", async (t) => {
  const machine = await startMachine(t);
  WebWorker.replacement = `data:text/javascript,${encodeURIComponent(`
    self.onmessage = () => { throw new Error("broken"); };
    postMessage({ type: "ready" });
  `)}`;
  const server = new NBDServer(machine.url, FILE, {});
  server.start();
  await until(() => server.state.phase === "ended");
  assert.equal(server.state.error?.code, "internal");
  assert.match(String(server.state.error?.reason), /broken/);
});
