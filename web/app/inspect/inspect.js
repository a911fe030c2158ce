// What an image is, from a few small reads of it. Knows nothing of the page; every offset in the image is distrusted.

import { container, footer } from "./containers.js";
import { fileSystem } from "./filesystems.js";
import { disc } from "./iso.js";
import { table } from "./partitions.js";
import { Bytes, look } from "./source.js";

/** @typedef {import("./source.js").ImageSource} ImageSource */
/** @typedef {"BIOS" | "UEFI"} Firmware */

/**
 * @typedef {object} Findings
 * @property {"disc" | "hybrid" | "disk" | "file-system" | "packed" | "virtual" | "unknown"} kind
 * @property {string} type such as `ISO 9660`, or empty
 * @property {string} table `GPT` or `MBR`, of a disk or a hybrid
 * @property {number} partitions
 * @property {string} label the volume's
 * @property {Firmware[]} boots
 * @property {number} end bytes that the image should have at least; 0 where it does not tell
 * @property {((name: string) => string) | null} remedy the command that makes a raw image of it
 */

const SECTOR = 512;

/** @type {Findings} */
const UNKNOWN = {
  kind: "unknown",
  type: "",
  table: "",
  partitions: 0,
  label: "",
  boots: [],
  end: 0,
  remedy: null,
};

/**
 * @param {ImageSource} source
 * @returns {Promise<Findings>}
 * @throws what `read` throws
 */
export async function inspect(source) {
  const head = await padded(source);
  const held = container(head);
  if (held) return contained(held);
  const [volume, parts] = await Promise.all([disc(source), table(source, head)]);
  if (volume) return { ...UNKNOWN, ...discOf(volume, parts) };
  const tail = await look(source, source.size - SECTOR, SECTOR);
  const late = tail && footer(tail);
  if (late) return contained(late);
  // A boot sector of FAT or NTFS ends as an MBR does, so it is asked first, and GPT knows itself.
  const system = parts?.type === "GPT" ? null : await fileSystem(source, head);
  if (system) return { ...UNKNOWN, kind: "file-system", ...system };
  if (parts) {
    const { type, ...rest } = parts;
    return { ...UNKNOWN, kind: "disk", table: type, ...rest };
  }
  return UNKNOWN;
}

/** @param {ImageSource} source @returns {Promise<Bytes>} the first sector, with zeros after a shorter image */
async function padded(source) {
  const head = new Uint8Array(SECTOR);
  head.set(await source.read(0, Math.min(SECTOR, source.size)));
  return new Bytes(head);
}

/** @param {import("./containers.js").Container & {virtual: boolean}} held @returns {Findings} */
function contained({ type, virtual, remedy }) {
  return { ...UNKNOWN, kind: virtual ? "virtual" : "packed", type, remedy };
}

/**
 * @param {import("./iso.js").Disc} volume
 * @param {import("./partitions.js").Table | null} parts
 * @returns {Partial<Findings>}
 */
function discOf(volume, parts) {
  if (parts === null) return { ...volume, kind: "disc" };
  const boots = /** @type {Firmware[]} */ (["BIOS", "UEFI"]).filter(
    (firmware) => volume.boots.includes(firmware) || parts.boots.includes(firmware),
  );
  const { partitions } = parts;
  // Tools leave the table's end a little beyond or before the volume's: the volume's is the one that readers need.
  return { ...volume, kind: "hybrid", table: parts.type, partitions, boots };
}
