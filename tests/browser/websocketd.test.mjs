// Under websocketd, as the prototype was run: our page, and pages that were written for the prototype.

import assert from "node:assert/strict";
import { cp, mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { browser, openPage, said, waitUntilSaid } from "../lib/page.mjs";
import { output, temporaryFolder, waitFor } from "../lib/process.mjs";
import { ROOT, websocketd } from "../lib/program.mjs";

const SOCKET = { 0: { device: "unix:" } };

// The elements of the prototype's page, and its way to use the script.
const PROTOTYPE_PAGE = `<!DOCTYPE html>
<meta charset="utf-8">
<script src="/js/nbd.js"></script>
<input type="file" id="file">
<input type="button" id="go" value="Go">
<input type="button" id="stop" value="Stop">
<pre id="log"></pre>
<script>
  const element = (id) => document.getElementById(id);
  let server;
  element("go").onclick = () => {
    server = NBDServer("ws://" + location.host + "/", element("file").files[0]);
    server.onlog = (message) => element("log").append(message + "\\n");
    server.start();
  };
  element("stop").onclick = () => server.stop();
</script>`;

/** @param {string} folder of the configuration, see configure @returns {Promise<string>} */
async function socketDevice(folder) {
  const run = join(folder, "run");
  const sockets = async () => (await readdir(run)).find((name) => name.endsWith(".sock"));
  const name = await waitFor("the socket device", sockets);
  return join(run, name);
}

/** @param {string} folder */
async function noSocketDevice(folder) {
  await waitFor("the device is detached", async () => {
    return !(await readdir(join(folder, "run"))).some((name) => name.endsWith(".sock"));
  });
}

/** @param {string} image @param {string} socket */
async function same(image, socket) {
  await output("qemu-img", [
    "compare",
    "-f",
    "raw",
    "-F",
    "raw",
    image,
    `nbd+unix:///?socket=${socket}`,
  ]);
}

for (const name of /** @type {const} */ (["chromium", "firefox"])) {
  test(`${name}: our page serves a disk through websocketd`, async (t) => {
    const server = await websocketd(t, SOCKET, ["0"]);
    const image = await noise(join(server.folder, "image"), 5_000_000 - (5_000_000 % 512));
    const tab = await openPage(t, name, server);
    await tab.choose("#file", image);
    await tab.click("#go");
    await same(image, await socketDevice(server.folder));
    await tab.click("#stop");
    await noSocketDevice(server.folder);
  });

  test(`${name}: the prototype's page works with our nbd.js and our program`, async (t) => {
    const pages = await temporaryFolder(t);
    await cp(join(ROOT, "web"), pages, { recursive: true });
    await writeFile(join(pages, "index.html"), PROTOTYPE_PAGE);
    const server = await websocketd(t, SOCKET, ["0"], pages);
    const image = await noise(join(server.folder, "image"), 1 << 20);
    const tab = await (await browser(t, name)).open(server.address);
    await tab.choose("#file", image);
    await tab.click("#go");
    await same(image, await socketDevice(server.folder));
    await tab.click("#stop");
    await noSocketDevice(server.folder);
  });
}

test("the classic script can be used with `new`, and from another folder's page", async (t) => {
  const pages = await temporaryFolder(t);
  await cp(join(ROOT, "web"), pages, { recursive: true });
  await mkdir(join(pages, "deep"));
  const page = PROTOTYPE_PAGE.replace("server = NBDServer", "server = new NBDServer");
  await writeFile(join(pages, "deep/index.html"), page);
  const server = await websocketd(t, SOCKET, ["0"], pages);
  const image = await noise(join(server.folder, "image"), 1 << 20);
  const tab = await (await browser(t, "chromium")).open(`${server.address}deep/`);
  await tab.choose("#file", image);
  await tab.click("#go");
  await same(image, await socketDevice(server.folder));
});

test("a configuration that does not exist ends the link, and the page says so", async (t) => {
  const server = await websocketd(t, SOCKET, ["nowhere"]);
  const tab = await openPage(t, "chromium", server);
  await tab.choose("#file", await noise(join(server.folder, "image"), 1 << 20));
  await tab.click("#go");
  await waitUntilSaid(tab, /ended|closed|lost/i);
  assert.ok(await tab.evaluate(`!document.getElementById("go").disabled`), await said(tab));
});
