// One image on its way to one configuration, and what its link does to it. Pure: time comes with the events.

import { explain, place, sentence } from "./words.js";

/**
 * @typedef {object} ServerDetail what the server tells of the device, as far as the page uses it
 * @property {"attaching" | "attached" | "held" | "draining"} phase
 * @property {string | null} device
 * @property {boolean} [resumed]
 * @property {number} [hold] seconds
 * @property {import("../nbd/nbd.js").Keep | null} [keep]
 */

/**
 * @typedef {object} LinkDetail what nbd.js tells of its server, as far as the page uses it
 * @property {"idle" | "connecting" | "serving" | "held" | "ended"} phase
 * @property {number} bytes
 * @property {number} requests
 * @property {number | null} [roundTrip] milliseconds
 * @property {ServerDetail | null} server
 * @property {{secondsLeft: number, reason: string} | null} [held]
 * @property {{reason: string, message: string} | null} end
 * @property {{code: string, reason: string} | null} trouble
 * @property {{code: string, reason: string, closeCode?: number | null} | null} error
 */

/** @typedef {"connecting" | "attaching" | "attached" | "held" | "draining" | "stopping" | "ended" | "failed"} Phase */

/**
 * @typedef {object} Choice an image, and what is known of it
 * @property {File | null} image
 * @property {FileSystemFileHandle | null} handle the image's, where the browser gives one
 * @property {import("./inspect/inspect.js").Findings | null} findings what it is, once it was looked at
 * @property {import("./digest-worker.js").Progress | null} digest where it was asked for
 */

/**
 * @typedef {object} Attachment what this tab serves to a configuration, or served last
 * @property {Phase} phase
 * @property {string | null} configuration null: the unnamed link of a plain server
 * @property {Choice} choice what it serves
 * @property {string} image its name
 * @property {LinkDetail} link as nbd.js told last
 * @property {number | null} attachedAt milliseconds since 1970
 * @property {number | null} overAt
 */

/** @type {Choice} */
export const NO_CHOICE = Object.freeze({ image: null, handle: null, findings: null, digest: null });

/** @type {LinkDetail} */
const NOTHING_YET = {
  phase: "idle",
  bytes: 0,
  requests: 0,
  server: null,
  end: null,
  trouble: null,
  error: null,
};

/** @param {string | null} configuration @param {Choice} choice @param {File} image of it @returns {Attachment} */
export function begin(configuration, choice, image) {
  return {
    phase: "connecting",
    configuration,
    choice,
    image: image.name,
    link: NOTHING_YET,
    attachedAt: null,
    overAt: null,
  };
}

/** @param {Attachment | null} attachment @returns {boolean} whether this tab serves it, or is about to or stops to */
export function isUnderWay(attachment) {
  return attachment !== null && attachment.phase !== "ended" && attachment.phase !== "failed";
}

/** @param {Attachment} before @param {LinkDetail} detail @param {number} at @returns {Attachment} */
export function follow(before, detail, at) {
  const phase = phaseAfter(before, detail);
  return {
    ...before,
    phase,
    link: detail,
    attachedAt: before.attachedAt ?? (phase === "attached" ? at : null),
    overAt: detail.phase === "ended" ? at : null,
  };
}

/** @param {Attachment} before @param {LinkDetail} detail @returns {Phase} */
function phaseAfter(before, { phase, server, error }) {
  if (phase === "ended") return error === null ? "ended" : "failed";
  if (before.phase === "stopping") return "stopping";
  if (phase === "held") return "held";
  if (server !== null) return server.phase;
  if (phase !== "serving") return "connecting";
  // A plain link tells nothing of the device: requests that come are all there is to see.
  return before.configuration === null ? "attached" : "attaching";
}

/** @param {Attachment} before @param {Attachment} after @returns {string[]} lines for the log */
export function notable(before, after) {
  const lines = [];
  const trouble = after.link.trouble;
  if (trouble && trouble.code !== before.link.trouble?.code) lines.push(sentence(trouble.reason));
  if (!trouble && before.link.trouble) lines.push("The image can be read again.");
  const keep = after.link.server?.keep;
  if (keep?.whole && !before.link.server?.keep?.whole) {
    lines.push("The machine has a whole copy of the image: this tab may be closed.");
  }
  if (keep?.problem && keep.problem !== before.link.server?.keep?.problem) {
    lines.push(`The machine makes no copy: ${sentence(keep.problem)}`);
  }
  if (after.phase !== before.phase) lines.push(...phaseLine(before, after));
  return lines;
}

/** @param {Attachment} before @param {Attachment} after @returns {string[]} one, or none */
function phaseLine({ attachedAt }, { phase, link }) {
  switch (phase) {
    case "attached":
      return [`${attached(attachedAt, link)}${place(link)}.`];
    case "held":
      return ["The connection was lost; connecting again."];
    case "draining":
      return ["Detaching; the device is still open on the machine."];
    case "ended":
      return [link.end === null ? "Ended." : `Ended: ${sentence(link.end.message)}`];
    case "failed": {
      const { headline, detail } = explain(link.error);
      return [`${headline} ${detail}`];
    }
    default:
      return [];
  }
}

/** @param {number | null} attachedAt when this tab did so first @param {LinkDetail} link @returns {string} */
function attached(attachedAt, { server }) {
  if (server?.resumed === false && attachedAt !== null) {
    return "The machine had given the disk up; attached anew";
  }
  return attachedAt === null && !server?.resumed ? "Attached" : "Connected again";
}
