// The page in a real browser: what people do wrong, what goes wrong, and that it says so.

import assert from "node:assert/strict";
import { open, stat, truncate, utimes } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { INSECURE_NAME } from "../lib/browsers.mjs";
import { noise, sha256 } from "../lib/images.mjs";
import { attach, browser, openPage, waitUntilSaid } from "../lib/page.mjs";
import { output, run, temporaryFolder, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

const SOCKET = { 0: { device: "unix:" } };

for (const name of /** @type {const} */ (["chromium", "firefox", "webkit"])) {
  test(`${name}: without a file nothing starts, and the page says what to do`, async (t) => {
    const server = await serve(t, SOCKET);
    const tab = await openPage(t, name, server);
    await tab.click("#go");
    await waitUntilSaid(tab, /choose/i);
    assert.equal(await server.session("0"), null);

    const image = await noise(join(server.folder, "image"), 1 << 20);
    await tab.choose("#file", image);
    await tab.click("#go");
    await server.attached("0");
  });

  test(`${name}: pressing go twice starts one session`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await noise(join(server.folder, "image"), 1 << 20);
    const tab = await openPage(t, name, server);
    await tab.choose("#file", image);
    await tab.evaluate(`["go", "go"].forEach((id) => document.getElementById(id).click())`);
    const session = await server.attached("0");
    await tab.evaluate(`document.getElementById("go").click()`);
    assert.equal((await server.attached("0")).since, session.since);
    const uri = `nbd+unix:///?socket=${session.device}`;
    await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
  });

  test(`${name}: stop detaches, and another image can be started`, async (t) => {
    const server = await serve(t, SOCKET);
    const first = await noise(join(server.folder, "first"), 1 << 20);
    const second = await noise(join(server.folder, "second"), 2 << 20);
    const { tab } = await attach(t, name, server, first);
    await tab.click("#stop");
    await server.detached("0");
    await tab.choose("#file", second);
    await tab.click("#go");
    const { device } = await server.attached("0");
    const uri = `nbd+unix:///?socket=${device}`;
    await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", second, uri]);
  });

  test(`${name}: eject says who uses the device, force does not ask, and another image can follow`, async (t) => {
    const server = await serve(t, { 0: { device: "loop:" } });
    const first = await noise(join(server.folder, "first"), 1 << 20);
    const second = await noise(join(server.folder, "second"), 2 << 20);
    const { tab, session } = await attach(t, name, server, first);
    const user = await open(session.device);
    await tab.click(".configuration > button");
    const refused = () => tab.evaluate(`document.querySelector(".refusal").innerText`);
    await waitFor("the page names who uses it", async () =>
      new RegExp(`in use.*process ${process.pid} `, "is").test(await refused()),
    );
    assert.equal((await server.session("0")).state, "attached");

    await tab.click(".refusal button");
    await waitFor(
      "the device is being detached",
      async () => (await server.session("0")).state === "draining",
    );
    await user.close();
    await server.detached("0");
    await tab.choose("#file", second);
    await tab.click("#go");
    const { device } = await server.attached("0");
    assert.equal(await sha256(device), await sha256(second));
  });

  test(`${name}: an empty file is refused with a reason`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await noise(join(server.folder, "nothing.img"), 0);
    const tab = await openPage(t, name, server);
    await tab.choose("#file", image);
    await tab.click("#go");
    await waitUntilSaid(tab, /nothing\.img.*empty/i);
    assert.equal(await server.session("0"), null);
  });

  test(`${name}: the last bytes of an image of odd length are there, and zeros after them`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await noise(join(server.folder, "odd.img"), 1_000_001);
    const { session } = await attach(t, name, server, image);
    assert.equal(session.size, 1_000_448);
    const copy = join(server.folder, "copy");
    await output("nbdcopy", [`nbd+unix:///?socket=${session.device}`, copy]);
    await truncate(image, 1_000_448);
    assert.equal(await sha256(copy), await sha256(image));
  });

  test(`${name}: the page is told that the server ended`, async (t) => {
    const server = await serve(t, SOCKET);
    const { tab } = await attach(
      t,
      name,
      server,
      await noise(join(server.folder, "image"), 1 << 20),
    );
    assert.equal(await server.program.stop("SIGTERM"), 0);
    await waitUntilSaid(tab, /server|connection|machine/i);
    await waitFor("go can be pressed again", () =>
      tab.evaluate("!document.getElementById('go').disabled"),
    );
  });

  test(`${name}: a file that shrank before it was served, in the second of its last change, is no image of zeros`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await noise(join(server.folder, "shrunk.img"), 4 << 20);
    const tab = await openPage(t, name, server);
    await tab.choose("#file", image);
    const { atime, mtime } = await stat(image);
    await truncate(image, 4096);
    await utimes(image, atime, mtime);
    await tab.click("#go");
    await waitUntilSaid(tab, /shrunk\.img.*(changed|read|not as long)/i);
    const { device } = await server.session("0");
    const { status } = await run("nbdcopy", [`nbd+unix:///?socket=${device}`, "null:"]);
    assert.notEqual(status, 0);
  });

  test(`${name}: a file that shrinks under the tab gives EIO, and the page says why`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await noise(join(server.folder, "shrinking.img"), 4 << 20);
    const { tab, session } = await attach(t, name, server, image);
    await truncate(image, 4096);
    const { status } = await run("nbdcopy", [`nbd+unix:///?socket=${session.device}`, "null:"]);
    assert.notEqual(status, 0);
    await waitUntilSaid(tab, /shrinking\.img.*(changed|read|not as long)/i);
  });
}

test("plain http on a LAN, which browsers don't call secure, is good enough", async (t) => {
  const server = await serve(t, SOCKET, { serve: { hosts: [INSECURE_NAME] } });
  const image = await noise(join(server.folder, "image"), 3_000_000 - (3_000_000 % 512));
  const address = server.address.replace("127.0.0.1", INSECURE_NAME);
  const { tab, session } = await attach(t, "chromium", Object.assign(server, { address }), image);
  assert.equal(await tab.evaluate("isSecureContext"), false);
  const uri = `nbd+unix:///?socket=${session.device}`;
  await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
});

test("two browsers at one configuration: the second is told who is there", async (t) => {
  const server = await serve(t, SOCKET);
  const image = await noise(join(server.folder, "image"), 1 << 20);
  const { session } = await attach(t, "chromium", server, image);
  const second = await openPage(t, "firefox", server);
  const other = await noise(join(server.folder, "other"), 1 << 20);
  await second.choose("#file", other);
  await second.click("#go");
  await waitUntilSaid(second, /in use/i);
  assert.equal((await server.session("0")).since, session.since);
  const uri = `nbd+unix:///?socket=${session.device}`;
  await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
});

test("two configurations of one server are two disks", async (t) => {
  const server = await serve(t, {
    left: { device: "unix:", default: true },
    right: { device: "unix:" },
  });
  const folder = await temporaryFolder(t);
  for (const [index, name] of ["left", "right"].entries()) {
    const tab = await openPage(t, index === 0 ? "chromium" : "firefox", server);
    await tab.choose("#file", await noise(join(folder, name), (index + 1) << 20));
    await tab.click(`input[type=radio][value=${name}]`);
    await tab.click("#go");
    await server.attached(name);
  }
  for (const name of ["left", "right"]) {
    const uri = `nbd+unix:///?socket=${(await server.session(name)).device}`;
    await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", join(folder, name), uri]);
  }
});

test("one page serves two images at once, and ejects one of them", async (t) => {
  const server = await serve(t, {
    left: { device: "unix:", default: true },
    right: { device: "unix:" },
  });
  const tab = await openPage(t, "chromium", server);
  for (const [index, name] of ["left", "right"].entries()) {
    await tab.click(`input[type=radio][value=${name}]`);
    await tab.choose("#file", await noise(join(server.folder, name), (index + 1) << 20));
    await tab.click("#go");
    await server.attached(name);
  }
  for (const name of ["left", "right"]) {
    const uri = `nbd+unix:///?socket=${(await server.session(name)).device}`;
    const image = join(server.folder, name);
    await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
  }
  await tab.click("#configurations li:first-child > button");
  await server.detached("left");
  assert.equal((await server.session("right")).state, "attached");
  await waitFor("the history", () =>
    tab.evaluate(`/left.*ejected/i.test(document.getElementById("history").textContent)`),
  );
  await tab.click("input[value=left]");
  await waitUntilSaid(tab, /Ended\./);
  await tab.click("input[value=right]");
  await tab.click("#stop");
  await server.detached("right");
});

test("an unknown configuration closes the link with 4404 and a reason", async (t) => {
  const server = await serve(t, SOCKET);
  const tab = await openPage(t, "chromium", server);
  const [code, reason] = await tab.evaluate(`new Promise((resolve) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/nbd/nowhere");
    socket.onclose = (event) => resolve([event.code, event.reason]);
  })`);
  assert.equal(code, 4404);
  assert.match(reason, /nowhere/);
});

test("the token leaves the address bar, and a reload is still signed in", async (t) => {
  const server = await serve(t, SOCKET);
  const tab = await openPage(t, "firefox", server);
  await waitFor(
    "the token is gone",
    async () => !(await tab.evaluate("location.href")).includes("token"),
  );
  await tab.go(server.url.origin);
  await waitFor("the list of configurations", () =>
    tab.evaluate(`document.querySelectorAll("#configurations li").length === 1`),
  );
  assert.equal(await tab.evaluate(`document.getElementById("login").hidden`), true);
});

test("without the token the page asks for it and nothing attaches", async (t) => {
  const server = await serve(t, SOCKET);
  const tab = await (await browser(t, "chromium")).open(server.url.origin);
  await waitFor("the login form", () => tab.evaluate(`!document.getElementById("login").hidden`));
  const code = await tab.evaluate(`new Promise((resolve) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/nbd/0");
    socket.onclose = (event) => resolve(event.code);
  })`);
  assert.equal(code, 4401);
  assert.equal(await server.session("0"), null);
});

test("nothing is logged for a request, however many there are", async (t) => {
  const server = await serve(t, SOCKET);
  const image = await noise(join(server.folder, "image"), 8 << 20);
  const { tab, session } = await attach(t, "chromium", server, image);
  const before = await tab.evaluate(`document.querySelectorAll("#log > *").length`);
  const uri = `nbd+unix:///?socket=${session.device}`;
  await output("nbdcopy", ["--request-size=4096", uri, "null:"]);
  assert.equal(await tab.evaluate(`document.querySelectorAll("#log > *").length`), before);
});
