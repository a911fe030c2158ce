// A browser here, nbd-proxy in a guest with the kernel's NBD driver: the tab's image is /dev/nbd0 there.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Guest, Setting } from "../lib/guest.mjs";
import { bootableIso, ext4Image, hashTree, noise, sha256, unpackIso } from "../lib/images.mjs";
import { attach, openPage } from "../lib/page.mjs";
import { temporaryFolder, waitFor } from "../lib/process.mjs";

/** @type {Guest} */
let guest;
before(async () => {
  guest = await Guest.boot();
});
after(() => guest?.stop());

/**
 * @param {string} device
 * @param {string} type of the file system
 * @returns {Promise<Record<string, string>>} SHA-256 by path of every file on the device, as the guest reads it
 */
async function mountedFiles(device, type) {
  const hashes = await guest.run(
    `mount=$(mktemp -d) && mount -t ${type} -o ro ${device} $mount && cd $mount &&
     find . -type f -exec sha256sum {} + ; cd / && umount $mount`,
  );
  const lines = hashes.split("\n").map((line) => line.split("  ./"));
  return Object.fromEntries(lines.map(([hash, path]) => [path, hash]));
}

/** @param {string} device */
async function freed(device) {
  await waitFor(`${device} is free`, async () => (await guest.sectors(device)) === 0);
}

/**
 * @param {Setting} setting
 * @param {{name: string, device: string, size: number}} expected
 */
async function assertHookCalls(setting, { name, device, size }) {
  const calls = await setting.calls();
  assert.deepEqual(
    calls.map((call) => [call.action, call.name]),
    [
      ["start", name],
      ["stop", name],
    ],
  );
  for (const { env } of calls) {
    assert.equal(env.NBD_PROXY_DEVICE, device);
    assert.equal(env.NBD_PROXY_SIZE, String(size));
    assert.equal(env.NBD_PROXY_READ_ONLY, "1");
    assert.equal(env.sectors, String(size / 512), "the device still has its size");
  }
}

for (const [browser, mode] of /** @type {const} */ ([
  ["chromium", "netlink"],
  ["firefox", "ioctl"],
])) {
  test(`under serve, ${mode}, ${browser}: an ISO is mounted and every file is right`, async (t) => {
    const setting = await Setting.make(t, guest, {
      0: { "nbd-device": "/dev/nbd0", attach: mode },
    });
    const server = await setting.serve(8000);
    const iso = await bootableIso();
    const { tab, session } = await attach(t, browser, server, iso);
    assert.equal(session.device, "/dev/nbd0");

    const folder = await temporaryFolder(t);
    const expected = await hashTree(await unpackIso(iso, join(folder, "unpacked")));
    assert.deepEqual(await mountedFiles("/dev/nbd0", "iso9660"), expected);

    await tab.click("#stop");
    await server.detached("0");
    await freed("/dev/nbd0");
    await assertHookCalls(setting, { name: "0", device: "/dev/nbd0", size: session.size });
    const [start] = await setting.calls();
    assert.match(start.env.NBD_PROXY_IMAGE, /\.iso$/);
    assert.equal(start.env.NBD_PROXY_USER, "local");
  });
}

for (const mode of ["netlink", "ioctl"]) {
  test(`under websocketd, ${mode}: the device is mounted, hashed, and freed when the tab stops`, async (t) => {
    const setting = await Setting.make(t, guest, {
      0: { "nbd-device": "/dev/nbd0", attach: mode },
    });
    const { address } = await setting.websocketd(8000, "0");
    const folder = await temporaryFolder(t);
    const { image, tree } = await ext4Image(folder);
    const tab = await openPage(t, "chromium", { address });
    await tab.choose("#file", image);
    await tab.click("#go");
    await guest.waitFor("the hook's start", `grep -q ^first= ${setting.folder}/calls`);
    assert.equal(await guest.hash("/dev/nbd0"), await sha256(image));
    assert.deepEqual(await mountedFiles("/dev/nbd0", "ext4"), await hashTree(tree));

    await tab.click("#stop");
    await freed("/dev/nbd0");
    await guest.waitFor("the hook's stop", `grep -q ^stop ${setting.folder}/calls`);
    await assertHookCalls(setting, { name: "0", device: "/dev/nbd0", size: 8 << 20 });
  });
}

test("two configurations of one server are two devices at once", async (t) => {
  const setting = await Setting.make(t, guest, {
    left: { "nbd-device": "/dev/nbd0", default: true },
    right: { "nbd-device": "/dev/nbd1" },
  });
  const server = await setting.serve(8001);
  const folder = await temporaryFolder(t);
  const images = {
    left: await noise(join(folder, "left"), 3 << 20),
    right: await noise(join(folder, "right"), 5 << 20),
  };
  for (const [name, image] of Object.entries(images)) {
    const tab = await openPage(t, name === "left" ? "chromium" : "firefox", server);
    await tab.choose("#file", image);
    await tab.click(`input[type=radio][value=${name}]`);
    await tab.click("#go");
    await server.attached(name);
  }
  assert.equal(await guest.hash("/dev/nbd0"), await sha256(images.left));
  assert.equal(await guest.hash("/dev/nbd1"), await sha256(images.right));
});
