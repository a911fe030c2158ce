// File systems on block devices.

import { mkdir, readFile } from "node:fs/promises";
import { output } from "./process.mjs";

/**
 * Mounts a device read-only while `action` looks at it. A kernel without iso9660 is helped out by fuseiso.
 *
 * @template T
 * @param {string} device
 * @param {"ext4" | "iso9660"} type
 * @param {string} folder made when absent
 * @param {(folder: string) => Promise<T>} action
 * @returns {Promise<T>}
 */
export async function mounted(device, type, folder, action) {
  await mkdir(folder, { recursive: true });
  const known = (await readFile("/proc/filesystems", "utf8")).split(/\s+/).includes(type);
  if (!known && type === "iso9660") await output("fuseiso", [device, folder]);
  else await output("mount", ["-t", type, "-o", "ro", device, folder]);
  try {
    return await action(folder);
  } finally {
    await output("umount", [folder]);
  }
}
