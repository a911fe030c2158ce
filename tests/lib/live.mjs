// A small operating system on an ISO that finds out by itself whether its disk is right.

import { chmod, copyFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { cachedIso, hashTree, noise } from "./images.mjs";
import { output } from "./process.mjs";
import { ROOT } from "./program.mjs";

const FOLDER = join(ROOT, "tests/live");
const FILES = 8;
const FILE_SIZE = 2 << 20;

const ENTRY = `
	linux /boot/vmlinuz console=ttyS0 no_timer_check loglevel=6 rdinit=/live-start panic=-1
	initrd /boot/initramfs`;

/** What it says while it boots. */
export const LIVE = {
  kernel: /Linux version/,
  mounting: /live: mounting the disk/,
  /** @param {number} index of a file, below 8 */
  checked: (index) => new RegExp(`data/${index}: OK`),
  disk: /live: the disk is (\w{64})/,
  right: /live: every file is right/,
};

/**
 * An ISO of about 40 MB whose system boots from it, checks every file, hashes the disk, says so on the first serial
 * port, and switches off.
 *
 * @returns {Promise<string>} its path
 */
export async function liveIso() {
  const kernel = await newestKernel();
  const scripts = await Promise.all(
    ["start", "init"].map((name) => readFile(join(FOLDER, name), "utf8")),
  );
  return cachedIso("live", [kernel, ENTRY, ...scripts], ENTRY, async (tree, work) => {
    await copyFile(join("/boot", `vmlinuz-${kernel}`), join(tree, "boot/vmlinuz"));
    const start = `${join(FOLDER, "start")}:/live-start`;
    const modules = ["ahci", "sr_mod", "isofs"].flatMap((module) => ["-m", module]);
    const build = join(ROOT, "tests/vm/build-initramfs.sh");
    await output(build, ["-k", kernel, "-o", join(work, "vm"), ...modules, start]);
    await copyFile(join(work, "vm/initramfs"), join(tree, "boot/initramfs"));
    for (const folder of ["bin", "data", "dev", "proc", "sbin"]) await mkdir(join(tree, folder));
    await copyFile("/bin/busybox", join(tree, "bin/busybox"));
    await copyFile(join(FOLDER, "init"), join(tree, "sbin/init"));
    for (const program of ["bin/busybox", "sbin/init"]) await chmod(join(tree, program), 0o755);
    for (let index = 0; index < FILES; index++) {
      await noise(join(tree, `data/${index}`), FILE_SIZE);
    }
    const sums = Object.entries(await hashTree(tree)).sort();
    const lines = sums.map(([path, sum]) => `${sum}  ${path}\n`);
    await writeFile(join(tree, "SHA256SUMS"), lines.join(""));
  });
}

/** @returns {Promise<string>} the version of a kernel whose modules are there */
async function newestKernel() {
  const versions = await readdir("/lib/modules");
  const images = await readdir("/boot");
  const found = versions.filter((version) => images.includes(`vmlinuz-${version}`)).sort();
  const newest = found.at(-1);
  if (newest === undefined) throw new Error("no kernel: apt-get install linux-image-amd64");
  return newest;
}
