// Images to serve: a bootable ISO of Debian's installer, and noise of any length.

import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import {
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import { homedir } from "node:os";
import { join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { output } from "./process.mjs";

/** Has a folder for each release of Debian whose installer is there. */
const INSTALLERS = "/usr/lib/debian-installer/images";

const INSTALLER_ENTRY = `
	linux /boot/linux console=ttyS0 no_timer_check priority=low
	initrd /boot/initrd.gz`;

/** What the installer of `bootableIso` says first on its serial console. */
export const INSTALLER_GREETING = /Choose a mirror of the Debian archive/;

/**
 * An ISO of about 58 MB that boots into Debian's installer, talking on the first serial port.
 * It is made once for each version of the installer and kept in the user's cache.
 *
 * @returns {Promise<string>} its path
 */
export async function bootableIso() {
  const [release] = (await readdir(INSTALLERS)).sort().reverse();
  const installer = join(INSTALLERS, release, "amd64/text");
  const version = await readFile(join(installer, "version.info"), "utf8");
  return cachedIso("installer", [version, INSTALLER_ENTRY], INSTALLER_ENTRY, async (tree) => {
    for (const file of ["linux", "initrd.gz"]) {
      await copyFile(join(installer, "debian-installer/amd64", file), join(tree, "boot", file));
    }
  });
}

/**
 * An ISO that GRUB boots, talking on the first serial port. It is made once and kept in the user's cache.
 *
 * @param {string} name
 * @param {string[]} from what it is made from: when that changes, it is made anew
 * @param {string} entry of GRUB's menu
 * @param {(tree: string, work: string) => Promise<void>} fill puts files into a folder with an empty `boot` in it
 * @returns {Promise<string>} its path
 */
export async function cachedIso(name, from, entry, fill) {
  const key = createHash("sha256").update(from.join("\0")).digest("hex").slice(0, 16);
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "nbd-proxy-tests");
  const iso = join(cache, `${name}-${key}.iso`);
  if (await stat(iso).catch(() => null)) return iso;
  await mkdir(cache, { recursive: true });
  const work = await mkdtemp(join(cache, "making-"));
  try {
    const tree = join(work, "tree");
    await mkdir(join(tree, "boot/grub"), { recursive: true });
    await writeFile(join(tree, "boot/grub/grub.cfg"), grubConfig(entry));
    await fill(tree, work);
    const made = join(work, "made.iso");
    await output("grub-mkrescue", ["-o", made, tree]);
    await rename(made, iso);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return iso;
}

/** @param {string} entry of its menu, chosen at once */
function grubConfig(entry) {
  return `serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry "boot" {${entry}
}
`;
}

/**
 * Writes a file of random bytes.
 *
 * @param {string} path
 * @param {number} size in bytes
 */
export async function noise(path, size) {
  await writeFile(path, randomBytes(size));
  return path;
}

/**
 * Makes an ext4 image with some files in it.
 *
 * @param {string} folder where the image and its files are made
 * @returns {Promise<{image: string, tree: string}>}
 */
export async function ext4Image(folder) {
  const tree = join(folder, "tree");
  await mkdir(join(tree, "deep/er"), { recursive: true });
  await noise(join(tree, "one"), 700_001);
  await noise(join(tree, "deep/two"), 4096);
  await noise(join(tree, "deep/er/three"), 3_000_000);
  const image = join(folder, "ext4.img");
  await output("mkfs.ext4", ["-q", "-d", tree, image, "8M"]);
  return { image, tree };
}

/**
 * @param {string} path
 * @returns {Promise<string>} the SHA-256 of a file or block device, in hexadecimal
 */
export async function sha256(path) {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/**
 * @param {string} folder
 * @returns {Promise<Record<string, string>>} SHA-256 by path, for every file under a folder
 */
export async function hashTree(folder) {
  /** @type {Record<string, string>} */
  const hashes = {};
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    hashes[relative(folder, path)] = await sha256(path);
  }
  return hashes;
}

/**
 * Unpacks an ISO without mounting it.
 *
 * @param {string} iso
 * @param {string} folder made here
 */
export async function unpackIso(iso, folder) {
  await output("xorriso", ["-osirrox", "on", "-indev", iso, "-extract", "/", folder]);
  return folder;
}
