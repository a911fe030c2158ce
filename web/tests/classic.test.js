// js/nbd.js, the classic script, in this process as in a page.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { before, test } from "node:test";
import { constants, Script } from "node:vm";
import { WebSocket } from "ws";
import { pattern, until } from "./lib/fakes.js";
import { startMachine } from "./lib/machine.js";

const SCRIPT = new URL("../js/nbd.js", import.meta.url);
const FILE = new File([pattern(0, 100_000)], "disk.iso");
const scope = /** @type {any} */ (globalThis);

before(async () => {
  scope.WebSocket = WebSocket;
  scope.document = { currentScript: { src: SCRIPT.href } };
  scope.location = { href: "http://127.0.0.1/" };
  new Script(await readFile(SCRIPT, "utf8"), {
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  }).runInThisContext();
});

/**
 * @param {import("node:test").TestContext} t
 * @param {(endpoint: string) => any} make
 */
async function servesAs(t, make) {
  const machine = await startMachine(t);
  const server = make(`${machine.url}/`);
  /** @type {string[]} */
  const lines = [];
  server.onlog = (/** @type {string} */ line) => lines.push(line);
  server.start();
  const link = await machine.accept();
  assert.equal(link.path, "/");
  await link.negotiate();
  assert.deepEqual(await link.read(3, 50), pattern(3, 50));
  assert.deepEqual(link.messages, [], "a plain link");
  server.stop();
  assert.equal((await link.untilClosed()).code, 1000);
  await until(() => lines.length === 3);
  return { machine, server };
}

test("the global NBDServer serves with new", async (t) => {
  await servesAs(t, (endpoint) => new scope.NBDServer(endpoint, FILE));
});

test("the global NBDServer serves without new", async (t) => {
  await servesAs(t, (endpoint) => scope.NBDServer(endpoint, FILE));
});

test("what it makes is an instance of it", () => {
  assert.ok(scope.NBDServer("ws://h/", FILE) instanceof scope.NBDServer);
});

test("it works through a Proxy", async (t) => {
  await servesAs(t, (endpoint) => new Proxy(new scope.NBDServer(endpoint, FILE), {}));
});

test("it can be started again after a stop", async (t) => {
  const { machine, server } = await servesAs(t, (endpoint) => scope.NBDServer(endpoint, FILE));
  server.start();
  const link = await machine.accept();
  await link.negotiate();
  server.stop();
  await link.untilClosed();
});

test("stop before the modules are there means no connection", async (t) => {
  const machine = await startMachine(t);
  const server = scope.NBDServer(machine.url, FILE);
  server.start();
  server.stop();
  await import("../nbd/nbd.js");
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(machine.server.clients.size, 0);
});

test("without a file it says so, and nothing waits for it", async () => {
  const server = scope.NBDServer("ws://127.0.0.1:1/", undefined);
  /** @type {string[]} */
  const lines = [];
  server.onlog = (/** @type {string} */ line) => lines.push(line);
  server.start();
  await until(() => lines.length === 2);
  assert.match(lines[1], /No image was chosen/);
});
