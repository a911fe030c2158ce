// Going on with an image after a reload, or after the tab was closed: what is remembered, and when it is of use. Pure.

/** @typedef {import("./api.js").Configuration} Configuration */
/** @typedef {import("./state.js").State} State */

/** @typedef {{name: string, size: number, modified: number | null}} ImageInfo as announced */

/**
 * @typedef {object} Memo a session that was served from this browser
 * @property {string} configuration
 * @property {string} session its ID
 * @property {ImageInfo} image
 * @property {FileSystemFileHandle | null} handle where the browser gives one: the file, without asking for it again
 */

/**
 * @typedef {object} Offer
 * @property {Memo} memo
 * @property {number | null} until when the machine gives the disk up, in milliseconds since 1970
 */

/**
 * @param {Pick<State, "memos" | "configurations">} state
 * @param {string | null} name of a configuration
 * @returns {Offer | null} what this browser could go on with there
 */
export function offerAt({ memos, configurations }, name) {
  const memo = memos.find(({ configuration }) => configuration === name);
  const session = configurations.find((known) => known.name === name)?.session;
  const waits = memo && session?.state === "held" && session.image !== null;
  return waits && isSame(session.image, memo.image) ? { memo, until: session.until ?? null } : null;
}

/** @param {Offer} offer @param {File | null} image the chosen one @returns {boolean} whether a click is enough */
export function isAtHand({ memo }, image) {
  return memo.handle !== null || (image !== null && isSame(memo.image, infoOf(image)));
}

/** @param {ImageInfo | null} one @param {ImageInfo} other @returns {boolean} */
export function isSame(one, other) {
  return one !== null && difference(one, other) === null;
}

/**
 * @param {ImageInfo} before
 * @param {ImageInfo} now
 * @returns {"name" | "size" | "modified" | null} what tells the two apart
 */
export function difference(before, now) {
  if (before.name !== now.name) return "name";
  if (before.size !== now.size) return "size";
  return before.modified === now.modified ? null : "modified";
}

/** @param {File} file @returns {ImageInfo} as nbd.js would announce it */
export function infoOf({ name, size, lastModified }) {
  return { name, size, modified: lastModified };
}
