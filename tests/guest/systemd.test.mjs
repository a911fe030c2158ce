// The Debian package and its units, under a systemd that is the machine's first process.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { DeviceReader } from "../lib/device-reader.mjs";
import { Guest } from "../lib/guest.mjs";
import { Packages } from "../lib/package.mjs";
import { waitFor } from "../lib/process.mjs";
import { PATIENCE_SECONDS, Service } from "../lib/service.mjs";

const UNIT = "nbd-proxy.service";
const SOCKETS_UNIT = "nbd-proxy-sockets.service";

/** The longest that nothing may be answered, in seconds: what is promised is 10, and the processor is emulated. */
const PAUSE = 60;

/** @type {Packages} */
let packages;
/** @type {Guest} */
let guest;
/** @type {Service} */
let service;
before(async () => {
  packages = await Packages.make();
  guest = await Guest.boot({ systemd: true });
  service = new Service(guest, packages);
});
after(async () => {
  await guest?.stop();
  await packages?.remove();
});

/** @param {string} file or device @returns {Promise<string>} without emptying the guest's caches, as that slows it down */
async function hash(file) {
  return guest.run(`sha256sum <${file} | cut -d' ' -f1`);
}

/** @param {import("../lib/guest.mjs").Setting} setting */
async function makeImage(setting) {
  const path = `${setting.folder}/image`;
  await guest.run(`head -c 3M /dev/urandom >${path}`);
  return { path, hash: await hash(path) };
}

test("all kinds of devices and their hooks work in the sandbox, and a stop ends sessions in order", async (t) => {
  const devices = { kernel: "/dev/nbd0", loop: "loop:", file: "fuse:", socket: "unix:" };
  const configurations = Object.fromEntries(
    Object.entries(devices).map(([name, device]) => [name, { device }]),
  );
  const setting = await service.setting(t, configurations);
  const image = await makeImage(setting);
  await service.start(UNIT);
  assert.equal(await service.property(UNIT, "ActiveState"), "active");
  assert.match(await service.property(UNIT, "StatusText"), /Listening on 127\.0\.0\.1:8000/);

  const sharing = [];
  /** @type {Record<string, string>} */
  const attached = {};
  for (const name of Object.keys(devices)) {
    const shared = await service.share(setting, UNIT, image.path, name);
    sharing.push(shared.sharing);
    attached[name] = shared.device;
  }
  assert.equal(await hash(attached.kernel), image.hash);
  assert.equal(await hash(attached.loop), image.hash);
  assert.equal(await hash(attached.file), image.hash);
  const copied = "nbdcopy 'nbd+unix:///?socket=/run/nbd-proxy/socket.sock' -";
  assert.equal(await guest.run(`${copied} | sha256sum | cut -d' ' -f1`), image.hash);
  assert.equal(await guest.run("stat -c %a /var/lib/nbd-proxy/logins.json"), "600");

  await service.systemctl(`stop ${UNIT}`);
  assert.equal(await service.property(UNIT, "Result"), "success");
  for (const one of sharing) {
    await one.ended();
    assert.match(await one.output(), /the server is stopping/);
  }
  const calls = (await setting.calls()).map(({ action, name }) => `${action} ${name}`);
  const expected = Object.keys(devices).flatMap((name) => [`start ${name}`, `stop ${name}`]);
  assert.deepEqual(calls.sort(), expected.sort());
  assert.equal(await guest.sectors("/dev/nbd0"), 0);
  await guest.run("[ ! -e /run/nbd-proxy ] && ! grep nbd-proxy /proc/mounts");
});

test("the watchdog is fed, and where it is not, the next server goes on with the kernel's device", async (t) => {
  const setting = await service.setting(t, { 0: { device: "/dev/nbd0" } });
  const image = await makeImage(setting);
  const folder = `/run/systemd/system/${UNIT}.d`;
  await guest.run(
    `mkdir -p ${folder}; printf '[Service]\\nWatchdogSec=12\\n' >${folder}/test.conf`,
  );
  t.after(() => guest.run(`rm -r ${folder}; systemctl daemon-reload`));
  await service.systemctl("daemon-reload");
  await service.start(UNIT);
  const fed = () => service.property(UNIT, "WatchdogTimestampMonotonic");
  const first = await fed();
  await waitFor("the watchdog is fed", async () => (await fed()) !== first, PATIENCE_SECONDS);

  await service.share(setting, UNIT, image.path, "0");
  const { since } = await service.attached("0");
  const process = await service.property(UNIT, "MainPID");
  await guest.run(`kill -STOP ${process}`);
  await guest.waitFor(
    "another server",
    `[ "$(systemctl show --value -p NRestarts ${UNIT})" -ge 1 ]`,
  );
  await guest.waitFor("it is ready", `systemctl --quiet is-active ${UNIT}`);
  assert.equal((await service.attached("0")).since, since);
  assert.equal(await hash("/dev/nbd0"), image.hash);
});

test("a connection to the port that systemd holds starts the service, again and again", async (t) => {
  await service.setting(t, { 0: { device: "unix:" } });
  await service.start("nbd-proxy.socket");
  assert.equal(await service.property(UNIT, "ActiveState"), "inactive");
  const healthy = "curl --silent --fail --retry 0 http://127.0.0.1:8000/healthz";
  assert.equal(await guest.run(healthy), "ok");
  assert.equal(await service.property(UNIT, "ActiveState"), "active");
  await service.systemctl(`stop ${UNIT}`);
  assert.equal(await guest.run(healthy), "ok");
  await service.systemctl(`restart --no-block ${UNIT}`);
  assert.equal(await guest.run(healthy), "ok");
});

test("for sockets alone the service has no privileges, and serves them", async (t) => {
  const setting = await service.setting(t, { lab: { device: "unix:" } });
  const image = await makeImage(setting);
  await service.start(SOCKETS_UNIT);
  const process = await service.property(SOCKETS_UNIT, "MainPID");
  const [, user] = /^Uid:\s+(\d+)/m.exec(await guest.run(`cat /proc/${process}/status`)) ?? [];
  assert.ok(Number(user) >= 61184, `a dynamic user, not ${user}`);
  assert.match(await guest.run(`cat /proc/${process}/status`), /^CapBnd:\s+0+$/m);

  const { sharing } = await service.share(setting, SOCKETS_UNIT, image.path, "lab");
  const copied = "nbdcopy 'nbd+unix:///?socket=/run/nbd-proxy/lab.sock' -";
  assert.equal(await guest.run(`${copied} | sha256sum | cut -d' ' -f1`), image.hash);
  assert.equal(await guest.run("stat -Lc %a /var/lib/nbd-proxy/logins.json"), "600");
  await service.systemctl(`stop ${SOCKETS_UNIT}`);
  assert.equal(await service.property(SOCKETS_UNIT, "Result"), "success");
  await sharing.ended();
});

test("an upgrade is a pause for who reads the kernel's device; a purge ends sessions and leaves nothing", async (t) => {
  const setting = await service.setting(t, { 0: { device: "/dev/nbd0" } });
  const image = await makeImage(setting);
  await service.start(UNIT);
  const { sharing } = await service.share(setting, UNIT, image.path, "0");
  const { since } = await service.attached("0");
  const process = await service.property(UNIT, "MainPID");
  // One request at a time: the emulated processor has more to do.
  const reader = await DeviceReader.start(setting, 1);
  await reader.reads();

  await service.dpkg(`-i ${packages.new}`);
  assert.notEqual(await service.property(UNIT, "MainPID"), process);
  await reader.reads();
  assert.equal((await service.attached("0")).since, since);
  const pause = await reader.finish(image.hash);
  t.diagnostic(`the reader's longest pause: ${pause} s`);
  assert.ok(pause <= PAUSE, `${pause} s`);
  assert.match(await guest.run("cat /etc/nbd-proxy/config.json"), /state-hook/);

  await service.dpkg("-r nbd-proxy");
  await sharing.ended();
  assert.equal(await guest.sectors("/dev/nbd0"), 0);
  const calls = (await setting.calls()).map(
    ({ action, env }) => `${action} ${env.NBD_PROXY_REASON}`,
  );
  assert.deepEqual(calls, ["start attached", "stop shutdown"]);
  await service.dpkg("-P nbd-proxy");
  const places = "/etc /run /usr/bin /usr/lib/systemd /usr/share/doc /usr/share/man /var/lib";
  const left = `find ${places} -xdev -name '*nbd-proxy*' -not -path '/run/log/*'`;
  assert.equal(await guest.run(left), "");
});
