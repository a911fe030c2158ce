// ISO 9660 (ECMA-119), its El Torito boot catalogue, and UDF (ECMA-167) as far as recognising it needs.

import { look } from "./source.js";

/** @typedef {import("./source.js").ImageSource} ImageSource */

const SECTOR = 2048;
/** Where descriptors begin, and how many are looked at: discs have three to six. */
const FIRST = 16;
const MOST = 32;

/** Platforms of an El Torito entry. */
const PLATFORM_BIOS = 0x00;
const PLATFORM_EFI = 0xef;

/**
 * @typedef {object} Disc
 * @property {string} type
 * @property {string} label
 * @property {("BIOS" | "UEFI")[]} boots
 * @property {number} end bytes that it needs; 0 where it does not tell
 */

/** @param {ImageSource} source @returns {Promise<Disc | null>} */
export async function disc(source) {
  const found = { iso: false, udf: false, label: "", end: 0, catalogue: 0 };
  for (let sector = FIRST; sector < FIRST + MOST; sector += 1) {
    const descriptor = await look(source, sector * SECTOR, SECTOR);
    const id = descriptor?.latin(1, 5) ?? "";
    if (descriptor === null || !/^(CD001|BEA01|NSR0[23]|TEA01|BOOT2)$/.test(id)) break;
    if (id.startsWith("NSR")) found.udf = true;
    if (id === "CD001") describe(descriptor, found);
  }
  if (!found.iso && !found.udf) return null;
  const type = found.iso ? (found.udf ? "ISO 9660 and UDF" : "ISO 9660") : "UDF";
  const boots = found.catalogue === 0 ? [] : await platforms(source, found.catalogue * SECTOR);
  return { type, label: found.label, boots, end: found.end };
}

/**
 * @param {import("./source.js").Bytes} descriptor
 * @param {{iso: boolean, label: string, end: number, catalogue: number}} found
 */
function describe(descriptor, found) {
  const kind = descriptor.u8(0);
  if (kind === 0 && descriptor.has(7, "EL TORITO SPECIFICATION")) {
    found.catalogue = descriptor.u32(0x47);
  } else if (kind === 1 && !found.iso) {
    found.iso = true;
    found.label = descriptor.text(40, 32);
    found.end = descriptor.u32(80) * descriptor.u16(128);
  }
}

/**
 * @param {ImageSource} source
 * @param {number} offset of the boot catalogue
 * @returns {Promise<("BIOS" | "UEFI")[]>}
 */
async function platforms(source, offset) {
  const catalogue = await look(source, offset, SECTOR);
  if (catalogue === null || catalogue.u8(0) !== 1 || catalogue.u16(30) !== 0xaa55) return [];
  const boots = new Set();
  let platform = catalogue.u8(1);
  // The validation entry, the default entry, then sections: a header and its entries.
  for (let at = 32; at < SECTOR; at += 32) {
    const kind = catalogue.u8(at);
    if (kind === 0x90 || kind === 0x91) platform = catalogue.u8(at + 1);
    else if (kind === 0x88) boots.add(platform);
    else if (kind === 0) break;
  }
  /** @type {("BIOS" | "UEFI")[]} */
  const names = [];
  if (boots.has(PLATFORM_BIOS)) names.push("BIOS");
  if (boots.has(PLATFORM_EFI)) names.push("UEFI");
  return names;
}
