// What an image is, in words: its type, how it boots, and what stands against using it.

import { bytes, count } from "./format.js";

/** @typedef {import("./inspect/inspect.js").Findings} Findings */
/** @typedef {{tone: "bad" | "note", text: string, command: string}} Remark `command` may be empty */

/** Linux's mass-storage gadget counts 256 × 60 × 75 sectors of 2048 bytes for a CD-ROM, without the last. */
export const CDROM_LIMIT = (256 * 60 * 75 - 1) * 2048;

/** @param {Findings} findings @returns {string} */
export function kind({ kind, type, table, partitions }) {
  const parts = `${partitions} ${partitions === 1 ? "partition" : "partitions"}`;
  switch (kind) {
    case "disc":
      return `${type} disc`;
    case "hybrid":
      return `${type} hybrid, for discs and USB drives (${table}, ${parts})`;
    case "disk":
      return `Disk with ${parts} (${table})`;
    case "file-system":
      return `${type} file system, without partitions`;
    case "packed":
      return `Compressed with ${type}`;
    case "virtual":
      return `${type} file of a virtual machine`;
    case "unknown":
      return "Not recognised";
  }
}

/** @param {Findings} findings @returns {string} */
export function boots({ kind, boots }) {
  if (boots.length > 0) return boots.join(" and ");
  if (kind === "packed" || kind === "virtual") return "Not as it is";
  return kind === "file-system" || kind === "unknown" ? "Unknown" : "No boot loader found";
}

/**
 * @param {Findings} findings
 * @param {{name: string, size: number}} image
 * @param {unknown} media what the chosen configuration shows the image as, where it says
 * @returns {Remark[]} the gravest first
 */
export function remarks(findings, image, media) {
  /** @type {Remark[]} */
  const found = [];
  const command = findings.remedy?.(image.name) ?? "";
  if (findings.kind === "packed") {
    found.push(bad("The machine would see compressed data, not a disk. Unpack it first:", command));
  }
  if (findings.kind === "virtual") {
    found.push(
      bad("This is not a raw image, and the machine takes no other. Convert it first:", command),
    );
  }
  if (findings.end > image.size) found.push(bad(truncated(findings.end, image.size)));
  if (isDisc(findings) || (media === "cdrom" && !isWrapped(findings))) {
    found.push(...ofDisc(image.size, media));
  }
  if (media === "cdrom" && (findings.kind === "disk" || findings.kind === "file-system")) {
    found.push(note("This is no disc, and the configuration shows a CD-ROM: it may not boot."));
  }
  if (findings.kind === "unknown") {
    found.push(note("The machine gets it as it is. Check that it is a disk image."));
  }
  return found.length > 0 ? found : [note("No problem found.")];
}

/** @param {number} end @param {number} size @returns {string} */
function truncated(end, size) {
  return (
    `The image is cut off: it should have ${count(end)} bytes and has ${count(size)}. ` +
    "Download or copy it again."
  );
}

/** @param {number} size @param {unknown} media @returns {Remark[]} */
function ofDisc(size, media) {
  const found = [];
  if (size > CDROM_LIMIT) {
    const limit = `An emulated USB CD-ROM shows the first ${bytes(CDROM_LIMIT)} (2.2 GiB) alone.`;
    found.push(
      media === "cdrom"
        ? bad(`${limit} Choose a configuration that shows a disk.`)
        : note(`${limit} Show this one as a disk.`),
    );
  }
  if (size % 2048 !== 0) {
    found.push(note("Not a multiple of 2,048 bytes, as discs are: its last sector is not whole."));
  }
  return found;
}

/** @param {Findings} findings @returns {boolean} whether the image is inside of this file */
function isWrapped({ kind }) {
  return kind === "packed" || kind === "virtual";
}

/** @param {Findings} findings @returns {boolean} */
function isDisc({ kind }) {
  return kind === "disc" || kind === "hybrid";
}

/** @param {string} text @param {string} [command] @returns {Remark} */
function bad(text, command = "") {
  return { tone: "bad", text, command };
}

/** @param {string} text @returns {Remark} */
function note(text) {
  return { tone: "note", text, command: "" };
}
