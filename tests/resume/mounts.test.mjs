// File systems that stay mounted while the link of their disk is lost, ten times.

import assert from "node:assert/strict";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { bootableIso, noise, sha256, unpackIso } from "../lib/images.mjs";
import { mounted } from "../lib/mount.mjs";
import { output, temporaryFolder, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";
import { lineTo, share } from "../lib/share.mjs";

const MIB = 1 << 20;
const LOSSES = 10;

/**
 * Files that nobody has read yet, so that reading one asks the sharer.
 *
 * @param {string} folder where the image is made
 */
async function ext4WithFiles(folder) {
  const tree = join(folder, "tree");
  await mkdir(tree, { recursive: true });
  for (let index = 0; index < LOSSES; index++) await noise(join(tree, `file${index}`), 2 * MIB);
  const image = join(folder, "ext4.img");
  await output("mkfs.ext4", ["-q", "-d", tree, image, "32M"]);
  return { image, tree, files: (await readdir(tree)).sort() };
}

/**
 * The longest files of an ISO.
 *
 * @param {string} folder where it is unpacked
 */
async function isoWithFiles(folder) {
  const image = await bootableIso();
  const tree = await unpackIso(image, join(folder, "unpacked"));
  const listing = await output("find", [tree, "-type", "f", "-printf", "%s %P\n"]);
  const sized = listing
    .trim()
    .split("\n")
    .sort((a, b) => Number.parseInt(b, 10) - Number.parseInt(a, 10));
  const files = sized.slice(0, LOSSES).map((line) => line.slice(line.indexOf(" ") + 1));
  return { image, tree, files };
}

for (const [type, make] of /** @type {const} */ ([
  ["ext4", ext4WithFiles],
  ["iso9660", isoWithFiles],
])) {
  test(`a mounted ${type} stays mounted through ${LOSSES} losses of the link`, async (t) => {
    const folder = await temporaryFolder(t);
    const { image, tree, files } = await make(folder);
    const server = await serve(t, { 0: { device: "loop:" } });
    const line = await lineTo(t, server, { rate: 100_000_000, delay: 2 });
    const sharing = share(t, server, image, { line });
    const session = await server.attached("0");
    await mounted(session.device, type, join(folder, "mnt"), async (mount) => {
      assert.equal(files.length, LOSSES);
      for (const [index, file] of files.entries()) {
        line.cut();
        assert.equal(await sha256(join(mount, file)), await sha256(join(tree, file)), file);
        const resumed = () => server.program.stderr.split(": resumed").length - 1;
        await waitFor(`loss ${index + 1} is over`, () => resumed() > index);
      }
    });
    assert.equal((await server.session("0")).device, session.device);
    assert.ok(sharing.running);
  });
}
