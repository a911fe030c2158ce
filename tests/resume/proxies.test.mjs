// Behind nginx and HAProxy, with the files that packaging/reverse-proxy offers.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { noise, sha256 } from "../lib/images.mjs";
import { browser, ready } from "../lib/page.mjs";
import { background } from "../lib/process.mjs";
import { PROGRAM, serve } from "../lib/program.mjs";
import { ask, haproxy, haproxyBeforeMachines, nginx } from "../lib/proxies.mjs";
import { hashDevice, lineTo, readOn, resumed } from "../lib/share.mjs";

const MIB = 1 << 20;
/** Bits a second: a whole image takes some seconds, so that what happens does so in mid-read. */
const LINE = { rate: 40_000_000, delay: 5 };
const SIZE = 24 * MIB;
const BEHIND = { "tls-terminated": true, "trusted-proxies": { addresses: ["127.0.0.1"] } };
const SETTINGS = { serve: { hosts: ["disks.example"], ...BEHIND } };

for (const proxy of [nginx, haproxy]) {
  test(`${proxy.name}: who it is, from where, and events pass as they are`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } }, SETTINGS);
    const { port, ca } = await proxy(t, Number(server.url.port));
    const login = (/** @type {Record<string, string>} */ headers) =>
      ask(port, ca, {
        path: "/api/v1/login",
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers },
        body: JSON.stringify({ token: server.token }),
      });
    const host = `disks.example:${port}`;
    const done = await login({ Host: host, Origin: `https://${host}` });
    assert.equal(done.status, 204, done.text);
    const [cookie] = done.headers["set-cookie"] ?? [];
    assert.match(cookie, /^__Host-.*; Secure/);

    const path = "/api/v1/configurations";
    const asked = async (/** @type {Record<string, string>} */ headers) =>
      (await ask(port, ca, { path, headers })).status;
    assert.equal(await asked({ Cookie: cookie.split(";")[0] }), 200);
    assert.equal(await asked({ Authorization: `Bearer ${server.token}` }), 200);
    assert.equal(await asked({}), 401);

    assert.equal((await login({ Host: "elsewhere.example" })).status, 403);
    assert.equal((await login({ Host: host, Origin: "https://elsewhere.example" })).status, 403);

    const headers = { Authorization: `Bearer ${server.token}` };
    const events = await ask(port, ca, { path: "/api/v1/events", headers, until: /data:.*\n\n/s });
    assert.match(events.text, /"name":"0"/);
  });

  test(`${proxy.name}: a reload is a pause to a reader of the whole disk, never an error`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } }, SETTINGS);
    const line = await lineTo(t, server, LINE);
    const { port, ca, reload } = await proxy(t, line.port);
    const image = await noise(join(server.folder, "image.img"), SIZE);
    const address = `https://127.0.0.1:${port}/#token=${server.token}`;
    const sharing = background(t, PROGRAM, ["share", image, address, "--ca", ca]);
    const hash = hashDevice(server, await server.attached("0"));
    // A failure is told where the hash is awaited.
    hash.catch(() => {});
    await readOn(server, "0", 2 * MIB);
    await reload();
    await resumed(server, 1);
    assert.equal(await hash, await sha256(image));
    await sharing.stop("SIGINT");
    assert.equal(await sharing.ended, 0);
    await server.detached("0");
  });
}

test("two machines behind one HAProxy: each name leads to its own, through a reload", async (t) => {
  const machine = async (/** @type {string} */ name) => {
    const settings = { serve: { hosts: [`${name}.localhost`], ...BEHIND } };
    const server = await serve(t, { 0: { device: "unix:" } }, settings, ["--tls-self-signed"]);
    const image = await noise(join(server.folder, `${name}.img`), SIZE);
    const line = await lineTo(t, server, LINE);
    const certificate = join(server.folder, "state/self-signed.crt");
    return { name, server, image, port: line.port, certificate };
  };
  const machines = [await machine("a"), await machine("b")];
  const { port, ca, reload } = await haproxyBeforeMachines(t, machines);
  const nobody = await ask(port, ca, { path: "/", headers: { Host: `c.localhost:${port}` } });
  assert.equal(nobody.status, 404);
  for (const { name } of machines) {
    const headers = { Host: `${name}.localhost:${port}` };
    const page = await ask(port, ca, { path: "/", headers });
    assert.equal(page.status, 200, page.text);
  }

  const chromium = await browser(t, "chromium");
  const attach = async (/** @type {typeof machines[0]} */ { name, server, image }) => {
    const tab = await chromium.open(`https://${name}.localhost:${port}/${server.url.hash}`);
    await ready(tab);
    await tab.choose("#file", image);
    await tab.click("#go");
    const session = await server.attached("0");
    assert.equal(session.image.name, `${name}.img`);
    return session;
  };
  const sessions = [await attach(machines[0]), await attach(machines[1])];
  const hashes = machines.map(({ server }, index) => hashDevice(server, sessions[index]));
  for (const hash of hashes) hash.catch(() => {});
  for (const { server } of machines) await readOn(server, "0", 2 * MIB);
  await reload();
  for (const { server } of machines) await resumed(server, 1);
  for (const [index, { image }] of machines.entries())
    assert.equal(await hashes[index], await sha256(image));
});
