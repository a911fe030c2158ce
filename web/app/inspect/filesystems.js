// File systems that lie on an image without a partition table, by their superblocks.

import { look } from "./source.js";

/** @typedef {import("./source.js").ImageSource} ImageSource */
/** @typedef {import("./source.js").Bytes} Bytes */
/** @typedef {{type: string, label: string, end: number}} FileSystem `end`: bytes that it needs; 0: unknown */

const BTRFS_SUPERBLOCK = 65536;

/**
 * @param {ImageSource} source
 * @param {Bytes} head the image's first bytes, at least 512
 * @returns {Promise<FileSystem | null>}
 */
export async function fileSystem(source, head) {
  const atStart = fat(head) ?? ntfs(head) ?? exfat(head) ?? xfs(head) ?? squashfs(head);
  return atStart ?? (await ext(source)) ?? (await btrfs(source));
}

/** @param {Bytes} head @returns {FileSystem | null} */
function fat(head) {
  const wide = head.has(82, "FAT32   ");
  if (!wide && !/^FAT(12|16| {2}) /.test(head.latin(54, 6))) return null;
  const sectors = head.u16(19) || head.u32(32);
  const label = head.text(wide ? 71 : 43, 11);
  const type = wide ? "FAT32" : head.text(54, 8);
  return { type, label: label === "NO NAME" ? "" : label, end: sectors * head.u16(11) };
}

/** @param {Bytes} head @returns {FileSystem | null} its label is a file far inside */
function ntfs(head) {
  if (!head.has(3, "NTFS    ")) return null;
  return { type: "NTFS", label: "", end: (head.u64(40) + 1) * head.u16(11) };
}

/** @param {Bytes} head @returns {FileSystem | null} its label is a directory's entry */
function exfat(head) {
  if (!head.has(3, "EXFAT   ")) return null;
  return { type: "exFAT", label: "", end: head.u64(72) * 2 ** head.u8(108) };
}

/** @param {Bytes} head @returns {FileSystem | null} the one that is big-endian */
function xfs(head) {
  if (!head.has(0, "XFSB")) return null;
  const blocks = Number(head.view.getBigUint64(8));
  return { type: "XFS", label: head.text(108, 12), end: blocks * head.view.getUint32(4) };
}

/** @param {Bytes} head @returns {FileSystem | null} */
function squashfs(head) {
  return head.has(0, "hsqs") ? { type: "SquashFS", label: "", end: head.u64(40) } : null;
}

/** @param {ImageSource} source @returns {Promise<FileSystem | null>} */
async function ext(source) {
  const block = await look(source, 1024, 264);
  if (block === null || block.u16(56) !== 0xef53) return null;
  // Extents or 64-bit counts make it ext4; a journal alone, ext3.
  const type = block.u32(96) & 0x2c0 ? "ext4" : block.u32(92) & 4 ? "ext3" : "ext2";
  const end = block.u32(4) * 2 ** (10 + Math.min(block.u32(24), 6));
  return { type, label: block.text(120, 16), end };
}

/** @param {ImageSource} source @returns {Promise<FileSystem | null>} */
async function btrfs(source) {
  const block = await look(source, BTRFS_SUPERBLOCK, 1024);
  if (block === null || !block.has(64, "_BHRfS_M")) return null;
  // The size is that of all its devices together.
  const end = block.u64(136) === 1 ? block.u64(112) : 0;
  return { type: "Btrfs", label: block.text(299, 256), end };
}
