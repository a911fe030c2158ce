// nbd.js in real browsers, with a machine that is a WebSocket server of this process: what only a
// browser can show, files, Workers and policies.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startMachine } from "../../web/tests/lib/machine.js";
import { servePages } from "../../web/tests/lib/pages.js";
import { noise } from "../lib/images.mjs";
import { browser } from "../lib/page.mjs";
import { temporaryFolder, waitFor } from "../lib/process.mjs";

const SIZE = 9_000_001;

/**
 * @param {import("node:test").TestContext} t
 * @param {"chromium" | "firefox" | "webkit"} name
 * @param {string[]} [missing] paths that the pages' server has not
 */
async function open(t, name, missing) {
  const machine = await startMachine(t);
  const tab = await (await browser(t, name)).open(await servePages(t, missing));
  await waitFor("the page's scripts run", () => tab.evaluate("typeof Server === 'function'"));
  return { machine, tab };
}

/**
 * @param {import("../../web/tests/lib/machine.js").Connection} link
 * @param {number} [step] bytes a read
 */
async function hashOf(link, step = 131_072) {
  const hash = createHash("sha256");
  for (let offset = 0; offset < SIZE; offset += step) {
    const bytes = await link.read(offset, Math.min(step, SIZE - offset));
    assert.ok(typeof bytes !== "number", `error ${bytes} at ${offset}`);
    hash.update(bytes);
  }
  return hash.digest("hex");
}

/** @param {string} path */
async function hashOfFile(path) {
  return createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
}

for (const name of /** @type {const} */ (["chromium", "firefox", "webkit"])) {
  test(`${name}: a chosen file is served from a Worker, whole and right`, async (t) => {
    const { machine, tab } = await open(t, name);
    const image = await noise(join(await temporaryFolder(t), "disk.iso"), SIZE);
    await tab.choose("#file", image);
    await tab.evaluate(`(() => {
      globalThis.server = new Server("${machine.url}/nbd/0", document.querySelector("#file").files[0], {});
      server.start();
    })()`);
    const link = await machine.accept();
    assert.equal(await link.negotiate(), SIZE);
    assert.equal(await hashOf(link), await hashOfFile(image));
    assert.equal(link.messages[0].name, "disk.iso");
    assert.equal(typeof link.messages[0].modified, "number");
    assert.equal(await tab.evaluate("workers"), 1);
    await waitFor("the page knows", () => tab.evaluate(`server.state.bytes === ${SIZE}`));
    await tab.evaluate("server.stop()");
    assert.equal((await link.untilClosed()).code, 1000);
    await waitFor("ended", () => tab.evaluate("server.state.phase === 'ended'"));
    assert.equal(await tab.evaluate("server.state.error"), null);
  });

  test(`${name}: an image with a read() is read by the page and sent by the Worker`, async (t) => {
    const { machine, tab } = await open(t, name);
    await tab.evaluate(`(() => {
      const read = (offset, length) => Uint8Array.from({ length }, (_, i) => (offset + i) % 253);
      globalThis.server = new Server("${machine.url}/", { size: 2 ** 45, read }, {});
      server.start();
    })()`);
    const link = await machine.accept();
    assert.equal(await link.negotiate(), 2 ** 45);
    const offset = 2 ** 44 + 7;
    const expected = Uint8Array.from({ length: 5000 }, (_, index) => (offset + index) % 253);
    assert.deepEqual(await link.read(offset, 5000), expected);
    assert.equal(await tab.evaluate("workers"), 1);
  });

  test(`${name}: without the Worker's script, and without locks, the page does it`, async (t) => {
    const { machine, tab } = await open(t, name, ["/nbd/worker.js"]);
    await tab.evaluate(`(() => {
      Object.defineProperty(navigator, "locks", { value: undefined });
      globalThis.server = new Server("${machine.url}/nbd/0", new Blob(["hello disk"]), {});
      server.start();
    })()`);
    const link = await machine.accept();
    assert.equal(await link.negotiate(), 10);
    assert.equal(String.fromCharCode(.../** @type {Uint8Array} */ (await link.read(6, 4))), "disk");
  });

  test(`${name}: the classic script serves without new, and logs no request`, async (t) => {
    const { machine, tab } = await open(t, name);
    await tab.evaluate(`(() => {
      globalThis.lines = [];
      globalThis.server = NBDServer("${machine.url}/", new Blob(["hello disk"]));
      server.onlog = (line) => lines.push(line);
      server.start();
    })()`);
    const link = await machine.accept();
    await link.negotiate();
    for (let count = 0; count < 20; count++) {
      await link.read(0, 10);
    }
    await tab.evaluate("server.stop()");
    assert.equal((await link.untilClosed()).code, 1000);
    await waitFor("the log", () => tab.evaluate("lines.length === 3"));
  });

  test(`${name}: a file that changed on disk gives EIO and says so`, async (t) => {
    const { machine, tab } = await open(t, name);
    const image = await noise(join(await temporaryFolder(t), "disk.iso"), SIZE);
    await tab.choose("#file", image);
    await tab.evaluate(`(() => {
      globalThis.server = new Server("${machine.url}/", document.querySelector("#file").files[0], {});
      server.start();
    })()`);
    const link = await machine.accept();
    await link.negotiate();
    assert.equal(typeof (await link.read(0, 512)), "object");
    await writeFile(image, new Uint8Array(SIZE));
    // WebKit looks at whole seconds.
    await utimes(image, 1, 1);
    let offset = 0;
    await waitFor("EIO", async () => {
      offset += 64 * 1024;
      return (await link.read(offset, 512)) === 5;
    });
    await waitFor("the state says so", () => tab.evaluate("server.state.trouble !== null"));
    assert.match(await tab.evaluate("server.state.trouble.reason"), /disk\.iso/);
    assert.equal(await tab.evaluate("server.state.phase"), "serving");
  });
}
