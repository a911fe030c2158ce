// File systems that stay mounted while the link of their disk is lost, ten times.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { bootableIso, hashTree, noise, sha256, unpackIso } from "../lib/images.mjs";
import { mounted } from "../lib/mount.mjs";
import { output, temporaryFolder } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";
import { lineTo, resumed, share } from "../lib/share.mjs";

const MIB = 1 << 20;
const LOSSES = 10;

/** @param {string} folder where the image is made */
async function ext4(folder) {
  const tree = join(folder, "tree");
  await mkdir(tree, { recursive: true });
  for (let index = 0; index < 10; index++) await noise(join(tree, `file${index}`), 4 * MIB);
  const image = join(folder, "ext4.img");
  await output("mkfs.ext4", ["-q", "-d", tree, image, "56M"]);
  return { image, tree };
}

/** @param {string} folder where it is unpacked */
async function iso9660(folder) {
  const image = await bootableIso();
  return { image, tree: await unpackIso(image, join(folder, "unpacked")) };
}

for (const [type, make] of /** @type {const} */ ([
  ["ext4", ext4],
  ["iso9660", iso9660],
])) {
  test(`a mounted ${type} stays mounted through ${LOSSES} losses of the link, and every byte is right`, async (t) => {
    const folder = await temporaryFolder(t);
    const { image, tree } = await make(folder);
    const server = await serve(t, { 0: { device: "loop:" } });
    const line = await lineTo(t, server, { rate: 100_000_000, delay: 2 });
    const sharing = share(t, server, image, { line });
    const session = await server.attached("0");
    const files = await mounted(session.device, type, join(folder, "mnt"), async (mount) => {
      const reading = hashTree(mount);
      const early = reading.then(() => assert.fail("all was read before the losses were over"));
      early.catch(() => {});
      for (let loss = 1; loss <= LOSSES; loss++) {
        await Promise.race([line.cutAfter(2 * MIB), early]);
        await resumed(server, loss);
      }
      return await reading;
    });
    assert.deepEqual(files, await hashTree(tree));
    assert.equal(await sha256(session.device), await sha256(image));
    assert.equal((await server.session("0")).since, session.since, "the same session");
    assert.ok(sharing.running);
  });
}
