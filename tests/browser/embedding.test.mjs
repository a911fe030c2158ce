// nbd.js in other people's pages: as a module, and by the constructor that webui-vue calls.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { browser, openPage } from "../lib/page.mjs";
import { output, waitFor } from "../lib/process.mjs";
import { ROOT, serve } from "../lib/program.mjs";

/** @typedef {import("../lib/browsers.mjs").Tab} Tab */

/** @param {string} image @param {string} socket */
async function same(image, socket) {
  const uri = `nbd+unix:///?socket=${socket}`;
  await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
}

for (const name of /** @type {const} */ (["chromium", "firefox", "webkit"])) {
  test(`${name}: webui-vue's constructor, its callbacks, inside a reactive proxy`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } });
    const image = await noise(join(server.folder, "image"), 1 << 20);
    const tab = await openPage(t, name, server);
    await tab.choose("#file", image);
    // What Vue's reactive() does: every method runs with the proxy as its `this`.
    await tab.evaluate(`import("/nbd/nbd.js").then(({ default: NBDServer }) => {
      const endpoint = location.origin.replace("http", "ws") + "/vm/0/0";
      const file = document.getElementById("file").files[0];
      const server = new Proxy(new NBDServer(endpoint, file, "0", ${JSON.stringify(server.token)}), {});
      window.told = [];
      server.socketStarted = () => told.push("started");
      server.socketClosed = (code) => told.push("closed " + code);
      server.errorReadingFile = () => told.push("unreadable");
      window.theirs = server;
      server.start();
    })`);
    const session = await server.attached("0");
    await same(image, session.device);
    await tab.evaluate("theirs.stop()");
    await server.detached("0");
    await waitFor("the callback", () => tab.evaluate("told.length === 2"));
    const told = await tab.evaluate("told");
    assert.equal(told[0], "started");
    assert.match(told[1], /^closed 100[05]$/);
  });

  test(`${name}: anything that can be read is served, on the caller's thread`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } });
    const tab = await openPage(t, name, server);
    await tab.evaluate(`import("/nbd/nbd.js").then(({ NBDServer }) => {
      const image = {
        size: 1 << 20,
        read: async (offset, length) => Uint8Array.from({ length }, (_, index) => (offset + index) % 251).buffer,
      };
      window.theirs = new NBDServer(location.origin.replace("http", "ws") + "/nbd/0", image, {});
      theirs.start();
    })`);
    const { device } = await server.attached("0");
    const copy = join(server.folder, "copy");
    await output("nbdcopy", [`nbd+unix:///?socket=${device}`, copy]);
    const bytes = await readFile(copy);
    assert.equal(bytes.length, 1 << 20);
    assert.ok(bytes.every((byte, index) => byte === index % 251));
    await tab.evaluate("theirs.stop()");
    await server.detached("0");
  });

  test(`${name}: the lite page attaches what is chosen, and ejects it`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } });
    const image = await noise(join(server.folder, "image"), 1 << 20);
    const tab = await (await browser(t, name)).open(server.address.replace("/#", "/lite.html#"));
    const status = () => tab.evaluate(`document.querySelector("output").value`);
    await tab.choose("input", image);
    const { device } = await server.attached("0").catch(async (error) => {
      assert.fail(`${error.message}\nthe page says: ${await status()}\n${server.messages()}`);
    });
    await same(image, device);
    await waitFor("the page names the device", async () => (await status()).includes(device));
    await tab.click("button");
    await server.detached("0");
    await waitFor("the page says so", async () => (await status()).startsWith("Detached"));
  });
}

test("the lite page is short enough to be read as documentation", async () => {
  const files = await Promise.all(
    ["lite.html", "lite.js"].map((file) => readFile(join(ROOT, "web", file), "utf8")),
  );
  assert.ok(files.join("").split("\n").length < 60);
});
