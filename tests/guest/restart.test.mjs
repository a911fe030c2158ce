// A server that is killed, or makes way for the next one, under a kernel device in use: the reader notices a pause.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DeviceReader } from "../lib/device-reader.mjs";
import { Guest, Setting } from "../lib/guest.mjs";
import { noise, sha256 } from "../lib/images.mjs";
import { attach, said, waitUntilSaid } from "../lib/page.mjs";
import { temporaryFolder } from "../lib/process.mjs";
import { PROGRAM } from "../lib/program.mjs";

/** The longest that nothing may be answered, in seconds: three times what is promised, for an emulated processor. */
const PAUSE = 30;
/** The image, in MiB. */
const SIZE = 8;

/** @type {Guest} */
let guest;
before(async () => {
  guest = await Guest.boot();
});
after(() => guest?.stop());

/** @param {import("node:test").TestContext} t @param {Record<string, unknown>} [members] of the configuration */
function make(t, members = {}) {
  const configurations = { 0: { "nbd-device": "/dev/nbd0", ...members } };
  return Setting.make(t, guest, configurations, { serve: { audit: "stderr" } });
}

/** @param {import("node:test").TestContext} t @param {Record<string, unknown>} [members] of the configuration */
async function shared(t, members = {}) {
  const setting = await make(t, members);
  const image = `${setting.folder}/image`;
  await guest.run(`head -c ${SIZE}M /dev/urandom >${image}`);
  return { setting, image, hash: await guest.hash(image) };
}

/** @param {Setting} setting @param {string} image @param {{token: string | null}} server */
function share(setting, image, server) {
  return setting.start(`${PROGRAM} share ${image} http://127.0.0.1:8000/#token=${server.token}`);
}

test("a killed server and one that makes way have successors, with 16 requests in flight", async (t) => {
  const { setting, image, hash } = await shared(t);
  const args = "--keep-sessions";
  let server = await setting.serve(8000, args);
  const sharing = await share(setting, image, server);
  await server.attached("0");
  const reader = await DeviceReader.start(setting);
  await reader.reads();
  const before = await server.session("0");
  for (const [signal, status] of /** @type {const} */ ([
    ["KILL", 128 + 9],
    ["TERM", 0],
  ])) {
    await reader.interrupt(server.program, signal);
    assert.equal(await server.program.ended(), status, await server.program.output());
    server = await setting.serve(8000, args);
    await reader.reads();
  }
  const session = await server.attached("0");
  assert.equal(session.since, before.since);
  const pause = await reader.finish(hash);
  t.diagnostic(`the reader's longest pause: ${pause} s`);
  assert.ok(pause <= PAUSE, `${pause} s`);

  await guest.run(`${setting.env} ${PROGRAM} eject 0`);
  await server.detached("0");
  assert.equal(await sharing.ended(), 0, await sharing.output());
  const calls = await setting.calls();
  assert.deepEqual(
    calls.map(({ action, env }) => `${action} ${env.NBD_PROXY_REASON}`),
    ["start attached", "stop ejected"],
  );
  assert.equal(await guest.sectors("/dev/nbd0"), 0);
});

test("a killed server has a successor, to which the page comes back by itself", async (t) => {
  const setting = await make(t);
  const image = await noise(join(await temporaryFolder(t), "disk.img"), SIZE << 20);
  const first = await setting.serve(8000);
  const { tab, session } = await attach(t, "chromium", first, image);
  const reader = await DeviceReader.start(setting);
  await reader.reads();
  await reader.interrupt(first.program, "KILL");
  await first.program.ended();

  const next = await setting.serve(8000);
  await reader.reads();
  await waitUntilSaid(tab, /connected again/i);
  assert.equal((await next.attached("0")).since, session.since, await said(tab));
  const pause = await reader.finish(await sha256(image));
  t.diagnostic(`the reader's longest pause: ${pause} s`);
  assert.ok(pause <= PAUSE, `${pause} s`);
  const events = [...(await next.program.output()).matchAll(/"event":"(\w+)"/g)];
  const ofSession = events.map(([, event]) => event).filter((event) => !/^server/.test(event));
  assert.deepEqual(ofSession.slice(0, 3), ["restored", "held", "resumed"]);
  await tab.click("#stop");
  await next.detached("0");
});

test("the device of a configuration that is no more is freed", async (t) => {
  const { setting, image } = await shared(t);
  const server = await setting.serve(8000);
  const sharing = await share(setting, image, server);
  await server.attached("0");
  for (const program of [sharing, server.program]) {
    await program.kill("KILL");
    await program.ended();
  }
  await guest.run(`sed -i 's/"0":/"other":/' ${setting.folder}/config.json`);
  const next = await setting.serve(8000);
  await next.program.says(/left of configuration "0".*\/dev\/nbd0 was still attached/);
  await guest.waitFor("the record is gone", `[ ! -e ${setting.folder}/run/0.session ]`);
  assert.equal(await guest.sectors("/dev/nbd0"), 0);
});
