// The page's state in words: what is the matter, and what to do about it.

import { bytes, count, duration, quoted } from "./format.js";

/** @typedef {import("./attachment.js").Attachment} Attachment */
/** @typedef {import("./attachment.js").LinkDetail} LinkDetail */
/** @typedef {{headline: string, detail: string}} Problem */
/** @typedef {{tone: "idle" | "good" | "wait" | "bad", headline: string, detail: string}} Summary */

/**
 * What nbd.js's error codes are called here, and what this page adds to the remedy that comes with most of them.
 * @type {Record<string, {headline: string, hint?: string}>}
 */
const ERRORS = {
  "no-image": { headline: "No image is chosen." },
  "empty-image": { headline: "The image is empty." },
  "image-changed": { headline: "The image has changed." },
  "image-gone": {
    headline: "The image is gone.",
    hint: "Put it back, or stop and choose it where it is now.",
  },
  "image-denied": { headline: "The image may not be read." },
  "image-unreadable": {
    headline: "The image cannot be read.",
    hint: "Check the file and its drive.",
  },
  unreachable: {
    headline: "The machine cannot be reached.",
    hint: "Check that it is on, that nbd-proxy runs there and that the network works, then start again.",
  },
  lost: {
    headline: "The connection was lost.",
    hint: "Start again to attach the image once more.",
  },
  silent: { headline: "The machine has gone silent.", hint: "Start again when it answers." },
  protocol: {
    headline: "The machine does not speak NBD as it should.",
    hint: "If nbd-proxy was just upgraded, reload this page.",
  },
  "not-allowed": {
    headline: "No access.",
    hint: "Sign in again, or as somebody who may attach here.",
  },
  "no-configuration": { headline: "No such configuration.", hint: "Choose another one." },
  busy: { headline: "In use.", hint: "See the list above, or choose another configuration." },
  "other-image": {
    headline: "Another image is attached.",
    hint: "Choose that same, unchanged file to go on with it, or eject it first.",
  },
  superseded: {
    headline: "Another tab took over.",
    hint: "Leave that one open: nothing is lost.",
  },
  "too-many": {
    headline: "Too many connections.",
    hint: "Close other tabs that use this machine, wait a minute, then start again.",
  },
  closed: {
    headline: "The machine closed the connection.",
    hint: "Start again; if it does so once more, its log says why.",
  },
};

const UNKNOWN = { headline: "Something went wrong.", hint: "Reload the page and try again." };

/**
 * What the server means by closing with a code that nbd.js has no word for.
 * @type {Record<number, {headline: string, hint: string}>}
 */
const CLOSED = {
  4400: { headline: "The image cannot be attached.", hint: "Choose another one." },
  4500: {
    headline: "The machine could not make a disk of it.",
    hint: "On the machine, the server's log and “nbd-proxy check” say what is missing.",
  },
};

/** @param {{code: string, reason: string, closeCode?: number | null} | null} error of nbd.js @returns {Problem} */
export function explain(error) {
  const { headline, hint = "" } =
    CLOSED[error?.closeCode ?? 0] ?? ERRORS[error?.code ?? ""] ?? UNKNOWN;
  return { headline, detail: `${sentence(error?.reason ?? "")} ${hint}`.trim() };
}

/** @returns {Problem} */
export function nothingChosen() {
  return {
    headline: "No image is chosen.",
    detail: "Choose the disk image to attach, or drop it on this page.",
  };
}

/**
 * @param {"name" | "size" | "modified"} what tells the two apart
 * @param {import("./resume.js").ImageInfo} expected
 * @param {import("./resume.js").ImageInfo} chosen
 * @param {string} configuration
 * @returns {Problem}
 */
export function notTheSame(what, expected, chosen, configuration) {
  const differences = {
    name: `is not “${expected.name}”`,
    size: `has ${count(chosen.size)} bytes, not ${count(expected.size)}`,
    modified: `was modified at ${date(chosen.modified)}, not at ${date(expected.modified)}`,
  };
  return {
    headline: "Not the same image.",
    detail:
      `The machine waits for “${expected.name}”, and “${chosen.name}” ${differences[what]}. ` +
      `Choose that same, unchanged file, or eject ${named(configuration)} first.`,
  };
}

/** @param {string} name @returns {Problem} where the browser can't open again what it had */
export function cannotReopen(name) {
  return {
    headline: "The image could not be opened again.",
    detail: `${quoted(name)} may have been moved, or the browser was not allowed to read it. Choose it once more.`,
  };
}

/**
 * @param {import("./resume.js").Offer} offer
 * @param {boolean} ready whether the file is at hand
 * @param {number} now milliseconds since 1970
 * @returns {string}
 */
export function offerText({ memo, until }, ready, now) {
  const time = until === null ? "" : ` for ${duration(until - now)} more`;
  const how = ready ? "" : " Choose the same file to go on.";
  return `The machine lost the tab that served ${quoted(memo.image.name)} to ${named(memo.configuration)}, and waits${time}.${how}`;
}

/** @param {string} name @returns {Problem} */
export function emptyImage(name) {
  return {
    headline: "Nothing to attach.",
    detail: `${quoted(name)} is empty, and a disk needs at least one byte. Perhaps its download failed: fetch or copy it again.`,
  };
}

/** @returns {Problem} */
export function notOneFile() {
  return {
    headline: "That is not one file.",
    detail:
      "Choose or drop a single disk image, such as an .iso or .img file, rather than a folder or several files.",
  };
}

/** @param {number} size bytes @returns {string} empty unless the size needs a remark */
export function paddingNote(size) {
  const rest = size % 512;
  if (rest === 0) return "";
  return `Not a multiple of 512 bytes: the machine sees it padded with ${bytes(512 - rest)} of zeros at its end.`;
}

/** @param {string} configuration @returns {string} */
export function named(configuration) {
  return `configuration “${configuration}”`;
}

/**
 * @param {Pick<import("./state.js").State, "access" | "problem" | "configurations">} state
 * @param {Attachment | null} attachment the chosen configuration's
 * @param {File | null} image
 * @returns {Summary}
 */
export function summary({ access, problem, configurations }, attachment, image) {
  if (problem !== null) return { tone: "bad", ...problem };
  if (attachment !== null) {
    const known = configurations.find(({ name }) => name === attachment.configuration);
    return describe(attachment, known?.session?.draining_for ?? []);
  }
  if (access?.kind === "unreachable")
    return { tone: "bad", ...explain({ code: "unreachable", reason: "" }) };
  if (image === null)
    return {
      tone: "idle",
      headline: "Nothing is attached from here.",
      detail: "Choose an image first.",
    };
  return {
    tone: "idle",
    headline: "Ready.",
    detail: "Press Start and the machine gets the image as a disk.",
  };
}

/** @param {Attachment} attachment @param {string[]} users what keeps the device, while it drains @returns {Summary} */
export function describe(attachment, users) {
  const { phase, image, link, configuration } = attachment;
  switch (phase) {
    case "connecting":
      return { tone: "wait", headline: "Connecting…", detail: "Opening a link to the machine." };
    case "attaching":
      return {
        tone: "wait",
        headline: "Attaching…",
        detail: `The machine makes a disk of ${quoted(image)}.`,
      };
    case "attached":
      if (link.trouble !== null) return { tone: "bad", ...explain(link.trouble) };
      return {
        tone: "good",
        headline: `${configuration === null ? "Connected" : "Attached"}${place(link)}.`,
        detail: serving(image, link.server?.keep ?? null),
      };
    case "held":
      return {
        tone: "wait",
        headline: "Reconnecting…",
        detail: held(link),
      };
    case "draining":
      return {
        tone: "wait",
        headline: "Detaching…",
        detail: draining(users),
      };
    case "stopping":
      return { tone: "wait", headline: "Stopping…", detail: "The machine detaches the disk." };
    case "ended":
      return {
        tone: "idle",
        headline: "Ended.",
        detail: `${sentence(link.end?.message ?? `${quoted(image)} is no longer attached`)} Start attaches it again.`,
      };
    case "failed":
      return failed(attachment);
  }
}

/** @param {string[]} users what has to end first, where the server knows it @returns {string} */
function draining(users) {
  const end = "The disk goes when its last user on the machine closes it";
  return users.length === 0 ? `${end}.` : `${end}. It waits for ${users.join(", ")}.`;
}

/** @param {Attachment} attachment @returns {Summary} */
function failed({ image, link }) {
  if (link.server?.keep?.whole && link.error?.code === "lost") {
    const detail = `The machine has a whole copy of ${quoted(image)} and goes on without this tab.`;
    return { tone: "idle", headline: "The connection was lost.", detail };
  }
  return { tone: "bad", ...explain(link.error) };
}

/** @param {LinkDetail} link that is lost @returns {string} */
function held({ server, held }) {
  const why = sentence(held?.reason ?? "The connection was lost");
  return server?.keep?.whole
    ? `${why} The machine goes on with its copy.`
    : `${why} The machine keeps the disk and waits: leave this tab open, and check the network.`;
}

/**
 * What moves while all else stays: apart from the summary, because that is read out at each change.
 * @param {Attachment | null} attachment
 * @returns {{text: string, done: number | null}} `done` from 0 to 1, where a bar shows it
 */
export function progress(attachment) {
  const { phase, link } = attachment ?? {};
  const keep = link?.server?.keep ?? null;
  if (phase === "held" && link?.held && !keep?.whole) {
    const { secondsLeft } = link.held;
    const text = `Reconnecting: ${duration(secondsLeft * 1000)} left before the machine gives the disk up.`;
    return { text, done: Math.min(1, secondsLeft / (link.server?.hold || 300)) };
  }
  if (phase !== "attached" || keep === null || keep.whole || keep.problem) {
    return { text: "", done: null };
  }
  return { text: copied(keep), done: keep.size > 0 ? keep.bytes / keep.size : 0 };
}

/** @param {import("../nbd/nbd.js").Keep} keep that is not whole @returns {string} */
function copied({ bytes: done, size, seconds_left: seconds }) {
  // Rounded down: 100% is for what is whole.
  const percent = size > 0 ? Math.min(99, Math.floor((done / size) * 100)) : 0;
  const left = seconds === null ? "" : `, ${duration(seconds * 1000)} left`;
  return `Copied to the machine: ${percent}% (${bytes(done)} of ${bytes(size)}${left}).`;
}

/** @param {string} image @param {import("../nbd/nbd.js").Keep | null} keep @returns {string} */
function serving(image, keep) {
  if (keep?.whole) {
    return `The machine has a whole copy of ${quoted(image)}: this tab may be closed. Stop detaches the disk.`;
  }
  const reads = `The machine reads ${quoted(image)} through this tab.`;
  if (keep === null || keep.problem) {
    return `${reads} Leave it open until that is done, then press Stop.`;
  }
  return `${reads} It makes a copy: leave this tab open until that is whole.`;
}

/** @param {LinkDetail} link @returns {string} what the machine calls the disk, where it tells */
export function place({ server }) {
  return server?.device ? ` as ${server.device}` : "";
}

/**
 * @param {import("./api.js").Session | null} session
 * @param {boolean} ours whether this tab serves it
 * @param {number} [now] milliseconds since 1970
 * @returns {string} what a configuration is used for
 */
export function usage(session, ours, now = Date.now()) {
  if (session === null) return ours ? "Used by this tab" : "Free";
  const image = session.image === null ? "an image" : quoted(session.image.name);
  const device = session.device === null ? "" : ` as ${session.device}`;
  const by = ours ? " from this tab" : ` by ${session.user} from ${session.from}`;
  switch (session.state) {
    case "attaching":
      return `Attaching ${image}${by}`;
    case "attached":
      return `${image}${device}${by}`;
    case "held":
      return `${image}${device}, lost its connection; kept ${left(session, now)}`;
    case "draining":
      return `${image}${device} is being detached; ${stillUsed(session.draining_for ?? [])}`;
  }
}

/** @param {string[]} users @returns {string} */
function stillUsed(users) {
  return users.length === 0 ? "still open on the machine" : `waits for ${users.join(", ")}`;
}

/** @param {import("./api.js").Session} session that is held @param {number} now @returns {string} */
function left({ seconds_left: seconds, until = null }, now) {
  if (seconds === null) return "until it is back";
  return `for ${duration(until === null ? seconds * 1000 : until - now)} more`;
}

/** @param {number | null} ms since 1970 @returns {string} */
function date(ms) {
  return ms === null ? "an unknown time" : new Date(ms).toLocaleString();
}

/** @param {string} text @returns {string} with a capital letter and a full stop */
export function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[\p{L}\p{N}”")]$/u.test(capital) ? `${capital}.` : capital;
}
