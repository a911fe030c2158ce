// The sessions of this tab that are over. They outlive a reload, and nothing else.

import { describe, sentence } from "./words.js";

/** @typedef {import("./attachment.js").Attachment} Attachment */

/**
 * @typedef {object} Past a session that is over
 * @property {string} image its name
 * @property {string | null} configuration
 * @property {number} from milliseconds since 1970
 * @property {number} to
 * @property {number} bytes that were served
 * @property {string} how it ended, for people
 */

const KEY = "nbd-proxy.history";
const LIMIT = 50;

/** @param {Past[]} history newest first @param {Past} past @returns {Past[]} */
export function withPast(history, past) {
  return [past, ...history].slice(0, LIMIT);
}

/** @param {Attachment} attachment @param {number} to @param {string} how @returns {Past | null} null: never attached */
export function pastOf({ image, configuration, attachedAt: from, link }, to, how) {
  return from === null ? null : { image, configuration, from, to, bytes: link.bytes, how };
}

/** @param {Attachment} attachment that is over @returns {string} */
export function ending(attachment) {
  const { link, phase } = attachment;
  if (phase !== "failed") return link.end === null ? "Stopped here." : sentence(link.end.message);
  const { headline, detail } = describe(attachment, []);
  return `${headline} ${detail}`;
}

/** @returns {Past[]} none where the browser does not remember */
export function readHistory() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
  } catch {
    return [];
  }
}

/** @param {Past[]} history */
export function writeHistory(history) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(history));
  } catch {
    // Then a reload forgets it.
  }
}
