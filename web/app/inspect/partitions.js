// Partition tables: MBR, and GPT (UEFI specification, chapter 5).

import { look } from "./source.js";

/** @typedef {import("./source.js").ImageSource} ImageSource */
/** @typedef {import("./source.js").Bytes} Bytes */

const SECTOR = 512;
const PROTECTIVE = 0xee;
const EFI_SYSTEM_MBR = 0xef;
/** The EFI system partition's type, as it lies on the disk. */
const EFI_SYSTEM_GPT = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
/** Entries that are looked at; tables have 128. */
const MOST_ENTRIES = 128;

/**
 * @typedef {object} Table
 * @property {"GPT" | "MBR"} type
 * @property {number} partitions
 * @property {("BIOS" | "UEFI")[]} boots
 * @property {number} end bytes that it needs
 */

/**
 * @param {ImageSource} source
 * @param {Bytes} head the image's first bytes, at least 512
 * @returns {Promise<Table | null>}
 */
export async function table(source, head) {
  const gpt = (await gptAt(source, 512)) ?? (await gptAt(source, 4096));
  const mbr = mbrIn(head);
  if (gpt === null) return mbr;
  // A hybrid boots by the code before its table, as an MBR disk does.
  const boots = /** @type {Table["boots"]} */ (hasBootCode(head) ? ["BIOS"] : []);
  return { ...gpt, boots: [...boots, ...gpt.boots] };
}

/** @param {Bytes} head @returns {Table | null} */
function mbrIn(head) {
  if (head.u16(510) !== 0xaa55) return null;
  const entries = [446, 462, 478, 494].map((at) => ({
    status: head.u8(at),
    type: head.u8(at + 4),
    start: head.u32(at + 8),
    length: head.u32(at + 12),
  }));
  const used = entries.filter(({ type, length }) => type !== 0 && length !== 0);
  // A file system's boot sector ends alike; only a table has plausible entries alone.
  const plausible = entries.every(({ status }) => status === 0 || status === 0x80);
  if (used.length === 0 || !plausible) return null;
  /** @type {Table["boots"]} */
  const boots = [];
  if (hasBootCode(head)) boots.push("BIOS");
  if (used.some(({ type }) => type === EFI_SYSTEM_MBR)) boots.push("UEFI");
  const real = used.filter(({ type }) => type !== PROTECTIVE);
  const end = Math.max(0, ...real.map(({ start, length }) => (start + length) * SECTOR));
  return { type: "MBR", partitions: used.length, boots, end };
}

/** @param {Bytes} head @returns {boolean} */
function hasBootCode(head) {
  return head.u16(510) === 0xaa55 && head.array.subarray(0, 440).some((byte) => byte !== 0);
}

/**
 * @param {ImageSource} source
 * @param {number} sector bytes
 * @returns {Promise<Table | null>}
 */
async function gptAt(source, sector) {
  const header = await look(source, sector, 92);
  if (header === null || !header.has(0, "EFI PART")) return null;
  const size = header.u32(84);
  const count = Math.min(header.u32(80), MOST_ENTRIES);
  // The backup header is the last sector of the disk.
  let end = (header.u64(32) + 1) * sector;
  const entries =
    size >= 128 && size <= 512 ? await look(source, header.u64(72) * sector, count * size) : null;
  let partitions = 0;
  let efi = false;
  for (let i = 0; entries !== null && i < count; i += 1) {
    const type = entries.latin(i * size, 16);
    if (type === "\0".repeat(16)) continue;
    partitions += 1;
    efi ||= type === EFI_SYSTEM_GPT;
    end = Math.max(end, (entries.u64(i * size + 40) + 1) * sector);
  }
  return { type: "GPT", partitions, boots: efi ? ["UEFI"] : [], end };
}
