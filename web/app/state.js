// All that the page knows, and how each event changes it. Pure: time comes with the events.

import { bytes } from "./format.js";
import { emptyImage, explain, named, nothingChosen, place, sentence } from "./words.js";

/** @typedef {import("./api.js").Access} Access */
/** @typedef {import("./api.js").Configuration} Configuration */
/** @typedef {import("./words.js").Problem} Problem */

/**
 * @typedef {object} LinkDetail what nbd.js tells of its server, as far as the page uses it
 * @property {"idle" | "connecting" | "serving" | "held" | "ended"} phase
 * @property {number} bytes
 * @property {number} requests
 * @property {{phase: "attaching" | "attached" | "held" | "draining", device: string | null} | null} server
 * @property {{reason: string, message: string} | null} end
 * @property {{code: string, reason: string} | null} trouble
 * @property {{code: string, reason: string} | null} error
 */

/** @typedef {"connecting" | "attaching" | "attached" | "held" | "draining" | "stopping" | "ended" | "failed"} Phase */

/**
 * @typedef {object} Attachment what this tab serves, or served last
 * @property {Phase} phase
 * @property {string | null} configuration null: the unnamed link of a plain server
 * @property {string} image its name
 * @property {LinkDetail} link as nbd.js told last
 * @property {number | null} attachedAt milliseconds since 1970
 * @property {number | null} overAt
 */

/**
 * @typedef {object} Eject
 * @property {string} name of the configuration
 * @property {boolean} waiting for the server's answer
 * @property {string} error empty unless refused
 * @property {boolean} forcible whether force would help
 */

/**
 * @typedef {object} State
 * @property {Access | null} access null until the server was asked
 * @property {Configuration[]} configurations
 * @property {string | null} chosen the chosen configuration's name
 * @property {File | null} image
 * @property {Problem | null} problem that kept the page from starting
 * @property {Attachment | null} attachment
 * @property {Eject | null} eject
 * @property {{at: number, text: string}[]} log newest last
 */

/**
 * @typedef {{type: "access", access: Access}
 *   | {type: "configuration", configuration: Configuration}
 *   | {type: "choose", name: string}
 *   | {type: "image", image: File}
 *   | {type: "refuse", problem: Problem}
 *   | {type: "start"}
 *   | {type: "link", detail: LinkDetail}
 *   | {type: "stop"}
 *   | {type: "eject", name: string}
 *   | {type: "eject-answer", name: string, error: string, forcible: boolean}} Event
 */

const LOG_LIMIT = 100;

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

/** @returns {State} */
export function initial() {
  return {
    access: null,
    configurations: [],
    chosen: null,
    image: null,
    problem: null,
    attachment: null,
    eject: null,
    log: [],
  };
}

/** @param {State} state @returns {boolean} whether this tab serves an image, or is about to or stops to */
export function isActive({ attachment }) {
  return attachment !== null && attachment.phase !== "ended" && attachment.phase !== "failed";
}

/**
 * @param {State} state
 * @param {Event} event
 * @param {number} at milliseconds since 1970
 * @returns {State} the same object where the event changes nothing
 */
export function reduce(state, event, at) {
  switch (event.type) {
    case "access":
      return withAccess(state, event.access);
    case "configuration":
      return withConfiguration(state, event.configuration);
    case "eject":
      return { ...state, eject: { name: event.name, waiting: true, error: "", forcible: false } };
    case "eject-answer":
      return withEjectAnswer(state, event, at);
    default:
      return isActive(state) ? reduceActive(state, event, at) : reduceIdle(state, event, at);
  }
}

/** @param {State} state that nothing is attached in @param {Event} event @param {number} at @returns {State} */
function reduceIdle(state, event, at) {
  switch (event.type) {
    case "choose":
      return { ...state, chosen: event.name };
    case "image":
      return withImage(state, event.image, at);
    case "refuse":
      return withProblem(state, event.problem, at);
    case "start":
      return started(state, at);
    default:
      return state;
  }
}

/** @param {State} state with an active attachment @param {Event} event @param {number} at @returns {State} */
function reduceActive(state, event, at) {
  switch (event.type) {
    case "link":
      return withLink(state, event.detail, at);
    case "stop":
      return stopping(state);
    default:
      return state;
  }
}

/** @param {State} state @param {Access} access @returns {State} */
function withAccess(state, access) {
  if (access.kind !== "open") return { ...state, access };
  const { configurations } = access;
  const known = configurations.some(({ name }) => name === state.chosen);
  const chosen = known || isActive(state) ? state.chosen : preferred(configurations);
  return { ...state, access, configurations, chosen };
}

/** @param {Configuration[]} configurations @returns {string | null} the name to begin with */
function preferred(configurations) {
  const candidate =
    configurations.find((configuration) => configuration.default) ?? configurations[0];
  return candidate ? candidate.name : null;
}

/** @param {State} state @param {Configuration} changed @returns {State} */
function withConfiguration(state, changed) {
  const configurations = state.configurations.map((known) =>
    known.name === changed.name ? changed : known,
  );
  const freed = state.eject?.name === changed.name && changed.session === null;
  return { ...state, configurations, eject: freed ? null : state.eject };
}

/** @param {State} state @param {File} image @param {number} at @returns {State} */
function withImage(state, image, at) {
  const fresh = { ...state, attachment: null };
  if (image.size > 0) return { ...fresh, image, problem: null };
  return withProblem({ ...fresh, image: null }, emptyImage(image.name), at);
}

/** @param {State} state @param {Problem} problem @param {number} at @returns {State} */
function withProblem(state, problem, at) {
  return log({ ...state, problem }, `${problem.headline} ${problem.detail}`, at);
}

/** @param {State} state @param {number} at @returns {State} */
function started(state, at) {
  const { image, chosen } = state;
  if (image === null) return { ...state, problem: state.problem ?? nothingChosen() };
  /** @type {Attachment} */
  const attachment = {
    phase: "connecting",
    configuration: chosen,
    image: image.name,
    link: NOTHING_YET,
    attachedAt: null,
    overAt: null,
  };
  const where = chosen === null ? "" : ` to ${named(chosen)}`;
  return log(
    { ...state, problem: null, attachment },
    `Attaching “${image.name}” (${bytes(image.size)})${where}.`,
    at,
  );
}

/** @param {State} state with an active attachment @param {LinkDetail} detail @param {number} at @returns {State} */
function withLink(state, detail, at) {
  const before = /** @type {Attachment} */ (state.attachment);
  const phase = phaseAfter(before, detail);
  /** @type {Attachment} */
  const after = {
    ...before,
    phase,
    link: detail,
    attachedAt: before.attachedAt ?? (phase === "attached" ? at : null),
    overAt: detail.phase === "ended" ? at : null,
  };
  /** @type {State} */
  let next = { ...state, attachment: after };
  for (const text of notable(before, after)) next = log(next, text, at);
  return next;
}

/** @param {State} state with an active attachment @returns {State} */
function stopping(state) {
  const attachment = /** @type {Attachment} */ (state.attachment);
  return { ...state, attachment: { ...attachment, phase: "stopping" } };
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
function notable(before, after) {
  const lines = [];
  const trouble = after.link.trouble;
  if (trouble && trouble.code !== before.link.trouble?.code) lines.push(sentence(trouble.reason));
  if (!trouble && before.link.trouble) lines.push("The image can be read again.");
  if (after.phase !== before.phase) lines.push(...phaseLine(before, after));
  return lines;
}

/** @param {Attachment} before @param {Attachment} after @returns {string[]} one, or none */
function phaseLine({ attachedAt }, { phase, link }) {
  switch (phase) {
    case "attached":
      return [`${attachedAt === null ? "Attached" : "Connected again"}${place(link)}.`];
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

/**
 * @param {State} state
 * @param {{name: string, error: string, forcible: boolean}} answer
 * @param {number} at
 * @returns {State}
 */
function withEjectAnswer(state, { name, error, forcible }, at) {
  if (error === "") return log({ ...state, eject: null }, `Ejected ${named(name)}.`, at);
  const text = `Not ejected: ${sentence(error)}`;
  return log({ ...state, eject: { name, waiting: false, error, forcible } }, text, at);
}

/** @param {State} state @param {string} text @param {number} at @returns {State} */
function log(state, text, at) {
  return { ...state, log: [...state.log, { at, text }].slice(-LOG_LIMIT) };
}
