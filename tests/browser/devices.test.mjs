// A disk from a browser tab, end to end: the printed address is opened, an ISO chosen, the disk read by others.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import {
  bootableIso,
  ext4Image,
  hashTree,
  INSTALLER_GREETING,
  sha256,
  unpackIso,
} from "../lib/images.mjs";
import { powerOn } from "../lib/machine.mjs";
import { mounted } from "../lib/mount.mjs";
import { attach } from "../lib/page.mjs";
import { output, temporaryFolder } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

for (const name of /** @type {const} */ (["chromium", "firefox"])) {
  test(`${name}: an ISO as a loop device is mounted and every file is right`, async (t) => {
    const iso = await bootableIso();
    const server = await serve(t, { 0: { device: "loop:" } });
    const { session } = await attach(t, name, server, iso);
    assert.match(session.device, /^\/dev\/loop\d+$/);
    const folder = await temporaryFolder(t);
    const expected = await hashTree(await unpackIso(iso, join(folder, "unpacked")));
    assert.ok(Object.keys(expected).length > 100);
    assert.deepEqual(
      await mounted(session.device, "iso9660", join(folder, "mnt"), hashTree),
      expected,
    );
  });

  test(`${name}: an ext4 image as a loop device is mounted and every file is right`, async (t) => {
    const folder = await temporaryFolder(t);
    const { image, tree } = await ext4Image(folder);
    const server = await serve(t, { 0: { device: "loop:" } });
    const { session } = await attach(t, name, server, image);
    const files = await mounted(session.device, "ext4", join(folder, "mnt"), hashTree);
    assert.deepEqual(files, await hashTree(tree));
  });

  test(`${name}: an ISO as a Unix socket is the same to libnbd and to QEMU`, async (t) => {
    const iso = await bootableIso();
    const server = await serve(t, { 0: { device: "unix:" } });
    const { session } = await attach(t, name, server, iso);
    const uri = `nbd+unix:///?socket=${session.device}`;

    const { exports } = JSON.parse(await output("nbdinfo", ["--json", uri]));
    assert.equal(exports[0]["export-size"], session.size);
    assert.equal(exports[0].is_read_only, true);
    assert.equal(exports[0].can_multi_conn, true);
    assert.equal(exports[0].block_size_minimum, 1);

    const copy = join(server.folder, "copy");
    await output("nbdcopy", [uri, copy]);
    assert.equal(await sha256(copy), await sha256(iso));
    await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", iso, uri]);
  });
}

test("QEMU boots the ISO from the tab's socket into the installer", async (t) => {
  const server = await serve(t, { 0: { device: "unix:" } });
  const { session } = await attach(t, "chromium", server, await bootableIso());
  await powerOn(t, session).says(INSTALLER_GREETING, 400);
});
