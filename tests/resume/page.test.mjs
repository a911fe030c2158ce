// A disk served from a real browser that is lost and comes back, while a machine reads: never an error, never a wrong
// byte.

import assert from "node:assert/strict";
import { copyFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { noise, sha256 } from "../lib/images.mjs";
import { Line } from "../lib/line.mjs";
import { browser, openPage, ready, said, waitUntilSaid } from "../lib/page.mjs";
import { atEnd, background, freePort, temporaryFolder, waitFor } from "../lib/process.mjs";
import { serve, serveAt } from "../lib/program.mjs";
import { Reader } from "../lib/reader.mjs";

const SOCKET = { 0: { device: "unix:", hold: 120 } };
const BROWSERS = /** @type {const} */ (["chromium", "firefox"]);

/** @typedef {import("node:test").TestContext} TestContext */
/** @typedef {import("../lib/browsers.mjs").Tab} Tab */
/** @typedef {Awaited<ReturnType<typeof serve>>} Server */

/** @param {Server} server @returns {Promise<string>} an image of 16 MiB */
function makeImage(server) {
  return noise(join(server.folder, "disk.img"), 16 << 20);
}

/**
 * Attaches an image from a page, and begins to read the device.
 *
 * @param {TestContext} t @param {Tab} tab @param {Server} server @param {string} image
 */
async function begin(t, tab, server, image) {
  await tab.choose("#file", image);
  await tab.click("#go");
  const { device } = await server.attached("0");
  const reader = new Reader(t, `nbd+unix:///?socket=${device}`);
  await reader.moves();
  await remembered(tab);
  return reader;
}

/**
 * Waits until the browser has written down what a later page needs to go on: a tab that is closed sooner leaves nothing.
 *
 * @param {Tab} tab
 */
async function remembered(tab) {
  const memos = `new Promise((resolve, reject) => {
    const opening = indexedDB.open("nbd-proxy");
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const counting = opening.result.transaction("sessions").objectStore("sessions").count();
      counting.onerror = () => reject(counting.error);
      counting.onsuccess = () => resolve(counting.result);
      opening.result.close();
    };
  })`;
  await waitFor("the browser remembers the session", () => tab.evaluate(memos));
}

/** @param {Reader} reader @param {string} image */
async function assertWhole(reader, image) {
  const expected = await sha256(image);
  const passes = await reader.finish();
  assert.ok(passes.length > 0);
  assert.deepEqual(
    passes,
    passes.map(() => expected),
  );
}

/** @param {Server} server */
async function held(server) {
  return waitFor("the session is held", async () => {
    const session = await server.session("0");
    return session?.state === "held" && session;
  });
}

/** @param {Tab} tab */
async function offered(tab) {
  await waitFor("the page offers to go on", async () => {
    if (await tab.evaluate(`!document.getElementById("offer").hidden`)) return true;
    throw new Error(await said(tab));
  });
}

for (const name of BROWSERS) {
  test(`${name}: a tab that is reloaded goes on by choosing the same file; another is refused`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const tab = await openPage(t, name, server);
    const reader = await begin(t, tab, server, image);
    const { since } = await server.session("0");
    await tab.go(server.url.origin);
    await ready(tab);
    await held(server);
    await offered(tab);
    assert.match(await said(tab), /waits for \d:\d\d more/);

    const other = await noise(join(server.folder, "other.img"), 16 << 20);
    await tab.choose("#file", other);
    await waitUntilSaid(tab, /not the same image.*other\.img.*is not.*disk\.img/is);
    await tab.click("#go");
    assert.equal((await server.session("0")).state, "held", "nothing was connected");

    await tab.choose("#file", image);
    await server.attached("0");
    await waitUntilSaid(tab, /connected again/i);
    await assertWhole(reader, image);
    assert.equal((await server.session("0")).since, since, "the same session");
  });

  test(`${name}: a browser that was killed and started anew goes on`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const profile = await temporaryFolder(t);
    const first = await browser(t, name, { profile });
    const tab = await first.open(server.address);
    await ready(tab);
    const reader = await begin(t, tab, server, image);
    const { since } = await server.session("0");
    await first.signal("SIGKILL");
    await held(server);

    const second = await (await browser(t, name, { profile })).open(server.address);
    await ready(second);
    await offered(second);
    await second.choose("#file", image);
    await server.attached("0");
    await assertWhole(reader, image);
    assert.equal((await server.session("0")).since, since, "the same session");
  });

  test(`${name}: a browser that is stopped for 30 s goes on by itself`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const owner = await browser(t, name);
    const tab = await owner.open(server.address);
    await ready(tab);
    const reader = await begin(t, tab, server, image);
    await owner.signal("SIGSTOP");
    const stopped = sleep(30_000);
    try {
      await held(server);
      await stopped;
    } finally {
      await owner.signal("SIGCONT");
    }
    await server.attached("0");
    await assertWhole(reader, image);
    await waitUntilSaid(tab, /connected again/i);
  });

  test(`${name}: a reverse proxy that is restarted is waited for`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const port = await freePort();
    const first = await nginx(t, port, server);
    const tab = await (await browser(t, name)).open(`http://127.0.0.1:${port}/${server.url.hash}`);
    await ready(tab);
    const reader = await begin(t, tab, server, image);
    await first.stop("SIGTERM");
    await held(server);
    await waitUntilSaid(tab, /reconnecting.*\d:\d\d left/is);
    assert.equal(await tab.evaluate(`document.getElementById("go").disabled`), true);
    await nginx(t, port, server);
    await server.attached("0");
    await assertWhole(reader, image);
  });

  test(`${name}: a network that swallows everything is noticed, and left as soon as it is back`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const line = await new Line(Number(server.url.port)).listen();
    atEnd(t, () => line.close());
    const address = `http://127.0.0.1:${line.port}/${server.url.hash}`;
    const tab = await (await browser(t, name)).open(address);
    await ready(tab);
    const reader = await begin(t, tab, server, image);
    line.silence();
    await held(server);
    await waitUntilSaid(tab, /reconnecting.*\d:\d\d left/is);
    line.restore();
    await server.attached("0");
    await assertWhole(reader, image);
  });

  test(`${name}: closing the tab holds the session, and a new tab offers to go on`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const owner = await browser(t, name);
    const tab = await owner.open(server.address);
    await ready(tab);
    const reader = await begin(t, tab, server, image);
    await tab.close();
    await held(server);
    const next = await owner.open(server.url.origin);
    await ready(next);
    await offered(next);
    await next.choose("#file", image);
    await server.attached("0");
    await assertWhole(reader, image);
    await next.click("#stop");
    await server.detached("0");
    await next.go(server.url.origin);
    await ready(next);
    assert.equal(await next.evaluate(`document.getElementById("offer").hidden`), true);
  });
}

test("one click goes on where the browser keeps the file's handle", async (t) => {
  const server = await serve(t, SOCKET);
  const tab = await openPage(t, "chromium", server);
  // No driver can use the system's dialog. A file of the origin's own gives the same kind of handle.
  await tab.evaluate(`(async () => {
    const folder = await navigator.storage.getDirectory();
    const handle = await folder.getFileHandle("disk.img", { create: true });
    const file = await handle.createWritable();
    const bytes = new Uint8Array(16 << 20).map((_, index) => (index * 7) ^ (index >> 9));
    await file.write(bytes);
    await file.close();
    globalThis.showOpenFilePicker = async () => [handle];
  })()`);
  await tab.click("#drop");
  await waitFor("the image is chosen", () =>
    tab.evaluate(`document.getElementById("image-name").innerText === "disk.img"`),
  );
  await tab.click("#go");
  const { device, since } = await server.attached("0");
  const reader = new Reader(t, `nbd+unix:///?socket=${device}`);
  await reader.moves();
  await tab.go(server.url.origin);
  await ready(tab);
  await offered(tab);
  await waitFor("one click is enough", () =>
    tab.evaluate(`document.getElementById("resume").innerText === "Resume"`),
  );
  await tab.click("#resume");
  await server.attached("0");
  assert.equal((await server.session("0")).since, since, "the same session");
  assert.equal(new Set(await reader.finish()).size, 1);
});

for (const name of BROWSERS) {
  test(`${name}: closing asks first, until the machine has a copy; then the tab may go`, async (t) => {
    const server = await serve(t, {
      0: { ...SOCKET[0], default: true },
      kept: { device: "unix:", keep: "memory" },
    });
    const image = await makeImage(server);
    const tab = await openPage(t, name, server);
    const leaves = () =>
      tab.evaluate(`dispatchEvent(new Event("beforeunload", { cancelable: true }))`);
    await tab.choose("#file", image);
    await tab.click("#go");
    await server.attached("0");
    assert.equal(await leaves(), false, "it asks");
    await tab.click("#stop");
    await server.detached("0");
    await waitFor("go can be pressed again", () =>
      tab.evaluate(`!document.getElementById("go").disabled`),
    );
    assert.equal(await leaves(), true, "nothing to lose");

    await tab.click("input[type=radio][value=kept]");
    await tab.click("#go");
    const { device } = await server.attached("kept");
    const reader = new Reader(t, `nbd+unix:///?socket=${device}`);
    await waitUntilSaid(tab, /whole copy.*this tab may be closed/i);
    assert.equal(await leaves(), true, "it may be closed");
    await tab.close();
    await assertWhole(reader, image);
    assert.equal((await server.session("kept")).state, "attached");
  });
}

for (const name of BROWSERS) {
  test(`${name}: another image that looks the same is refused by the machine, and the right one is not`, async (t) => {
    const server = await serve(t, SOCKET);
    const image = await makeImage(server);
    const tab = await openPage(t, name, server);
    const reader = await begin(t, tab, server, image);
    const { since } = await server.session("0");
    await tab.go(server.url.origin);
    await ready(tab);
    await offered(tab);

    const other = await noise(join(await temporaryFolder(t), "disk.img"), 16 << 20);
    await sameTime(other, image);
    await tab.choose("#file", other);
    await waitUntilSaid(tab, /are not those of the session's image/i);
    assert.equal((await server.session("0")).state, "held");

    await tab.choose("#file", image);
    await server.attached("0");
    await assertWhole(reader, image);
    assert.equal((await server.session("0")).since, since, "the same session");
  });
}

/**
 * Gives a file another's time of the last change, as browsers tell it.
 *
 * @param {string} path @param {string} other
 */
async function sameTime(path, other) {
  // They tell whole milliseconds and cut off the rest: the middle of one stays the same in every rounding.
  const { mtimeMs } = await stat(other);
  const modified = (Math.floor(mtimeMs) + 0.5) / 1000;
  await utimes(path, modified, modified);
}

test("another browser is told who is there, and takes over with the same image", async (t) => {
  const server = await serve(t, SOCKET);
  const image = await makeImage(server);
  const first = await openPage(t, "chromium", server);
  const reader = await begin(t, first, server, image);
  const { since } = await server.session("0");
  const second = await openPage(t, "firefox", server);
  const offers = () => second.evaluate(`!document.getElementById("takeover").hidden`);

  const other = await noise(join(await temporaryFolder(t), "disk.img"), 1 << 20);
  await second.choose("#file", other);
  await second.click("#go");
  await waitUntilSaid(second, /in use by local from 127\.0\.0\.1/i);
  assert.equal(await offers(), false, "not with another image");

  await second.choose("#file", image);
  await second.click("#go");
  await waitFor("it offers to take over", offers);
  await second.click("#takeover");
  await waitUntilSaid(first, /another tab took over/i);
  await waitUntilSaid(second, /connected again/i);
  await assertWhole(reader, image);
  assert.equal((await server.session("0")).since, since, "the same session");
});

test("what differs is said: the size, or the time of the last change", async (t) => {
  const server = await serve(t, SOCKET);
  const image = await makeImage(server);
  const tab = await openPage(t, "chromium", server);
  await begin(t, tab, server, image);
  await tab.go(server.url.origin);
  await ready(tab);
  await offered(tab);
  const [short, late, same] = await Promise.all(
    [1, 2, 3].map(async () => join(await temporaryFolder(t), "disk.img")),
  );
  await writeFile(short, "short");
  await tab.choose("#file", short);
  await waitUntilSaid(tab, /has 5 bytes, not 16,777,216/);
  await copyFile(image, late);
  await utimes(late, 1, 1);
  await tab.choose("#file", late);
  await waitUntilSaid(tab, /was modified at/);
  await copyFile(image, same);
  await sameTime(same, image);
  await tab.choose("#file", same);
  await server.attached("0");
});

test("an eject while the tab is away ends the offer", async (t) => {
  const server = await serve(t, SOCKET);
  const tab = await openPage(t, "firefox", server);
  await begin(t, tab, server, await makeImage(server));
  await tab.go(server.url.origin);
  await ready(tab);
  await offered(tab);
  await server.api("configurations/0/eject", { method: "POST", body: `{"force":true}` });
  await waitFor("the offer is gone", () => tab.evaluate(`document.getElementById("offer").hidden`));
});

test("a server that was killed and started anew lets the page in by its cookie, which attaches the image anew", async (t) => {
  const server = await serve(t, SOCKET);
  const image = await makeImage(server);
  const tab = await openPage(t, "chromium", server);
  await tab.choose("#file", image);
  await tab.click("#go");
  const { since } = await server.attached("0");
  await server.program.stop("SIGKILL");
  await waitUntilSaid(tab, /reconnecting.*\d:\d\d left/is);

  const next = await serveAt(t, server.url.host, server.setting);
  const session = await next.attached("0").catch(async (error) => {
    assert.fail(`${error.message}\n${await said(tab)}\n${next.messages()}`);
  });
  assert.notEqual(session.since, since, "a device on a socket goes with its server");
  const reader = new Reader(t, `nbd+unix:///?socket=${session.device}`);
  await assertWhole(reader, image);
  await waitUntilSaid(tab, /had given the disk up; attached anew/i);
});

/** @param {TestContext} t @param {number} port @param {Server} server */
async function nginx(t, port, server) {
  const folder = await temporaryFolder(t);
  const config = join(folder, "nginx.conf");
  await writeFile(
    config,
    `daemon off; master_process off; pid ${folder}/pid; error_log stderr;
     events {}
     http {
       access_log off;
       client_body_temp_path ${folder}/body; proxy_temp_path ${folder}/proxy;
       fastcgi_temp_path ${folder}/fastcgi; uwsgi_temp_path ${folder}/uwsgi; scgi_temp_path ${folder}/scgi;
       map $http_upgrade $connection_upgrade { default upgrade; "" close; }
       server {
         listen 127.0.0.1:${port};
         location / {
           proxy_pass http://${server.url.host};
           proxy_http_version 1.1;
           proxy_buffering off;
           proxy_set_header Host $http_host;
           proxy_set_header Upgrade $http_upgrade;
           proxy_set_header Connection $connection_upgrade;
         }
       }
     }`,
  );
  const program = background(t, "nginx", ["-e", "stderr", "-c", config, "-p", folder]);
  await waitFor("nginx answers", async () => (await fetch(`http://127.0.0.1:${port}/healthz`)).ok);
  return program;
}
