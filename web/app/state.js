// All that the page knows, and how each event changes it. Pure: time comes with the events.

import { bytes } from "./format.js";
import { difference, infoOf, isSame, offerAt } from "./resume.js";
import { emptyImage, explain, named, nothingChosen, notTheSame, place, sentence } from "./words.js";

/** @typedef {import("./api.js").Access} Access */
/** @typedef {import("./api.js").Configuration} Configuration */
/** @typedef {import("./resume.js").Memo} Memo */
/** @typedef {import("./words.js").Problem} Problem */

/**
 * @typedef {object} ServerDetail what the server tells of the device, as far as the page uses it
 * @property {"attaching" | "attached" | "held" | "draining"} phase
 * @property {string | null} device
 * @property {boolean} [resumed]
 * @property {import("../nbd/nbd.js").Keep | null} [keep]
 */

/**
 * @typedef {object} LinkDetail what nbd.js tells of its server, as far as the page uses it
 * @property {"idle" | "connecting" | "serving" | "held" | "ended"} phase
 * @property {number} bytes
 * @property {number} requests
 * @property {ServerDetail | null} server
 * @property {{secondsLeft: number, reason: string} | null} [held]
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
 * @property {boolean} picked whether it was a person who chose it
 * @property {File | null} image
 * @property {import("./inspect/inspect.js").Findings | null} findings what the image is, once it was looked at
 * @property {import("./digest-worker.js").Progress | null} digest of the image, where it was asked for
 * @property {FileSystemFileHandle | null} handle the image's, where the browser gives one
 * @property {Memo[]} memos what this browser has served and may go on with
 * @property {Problem | null} problem that kept the page from starting
 * @property {Attachment | null} attachment
 * @property {Eject | null} eject
 * @property {{at: number, text: string}[]} log newest last
 */

/**
 * @typedef {{type: "access", access: Access}
 *   | {type: "configuration", configuration: Configuration}
 *   | {type: "choose", name: string}
 *   | {type: "image", image: File, handle?: FileSystemFileHandle | null}
 *   | {type: "findings", image: File, findings: NonNullable<State["findings"]>}
 *   | {type: "digest", image: File, digest: State["digest"]}
 *   | {type: "memos", memos: Memo[]}
 *   | {type: "remember", memo: Memo}
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
    picked: false,
    image: null,
    findings: null,
    digest: null,
    handle: null,
    memos: [],
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

/** @param {State} state @returns {boolean} whether the machine would miss this tab */
export function isNeeded(state) {
  return isActive(state) && !state.attachment?.link.server?.keep?.whole;
}

/**
 * @param {State} state
 * @returns {boolean} whether the start was refused for a session that is this user's own, with the same image
 */
export function mayTakeOver({ access, attachment, configurations, image }) {
  if (access?.kind !== "open" || attachment?.link.error?.code !== "busy" || !image) return false;
  const session = configurations.find(({ name }) => name === attachment.configuration)?.session;
  if (!session || session.state === "draining") return false;
  return session.user === access.user && isSame(session.image, infoOf(image));
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
      return followingOffer(withAccess(state, event.access, at));
    case "configuration":
      return followingOffer(withConfiguration(state, event.configuration, at));
    case "findings":
      return event.image === state.image ? { ...state, findings: event.findings } : state;
    case "digest":
      return event.image === state.image ? { ...state, digest: event.digest } : state;
    case "memos":
      return followingOffer({ ...state, memos: event.memos });
    case "remember":
      return remembered(state, event.memo);
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
      return { ...state, chosen: event.name, picked: true, problem: null };
    case "image":
      return withImage({ ...state, handle: event.handle ?? null }, event.image, at);
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

/** @param {State} state @param {Access} access @param {number} at @returns {State} */
function withAccess(state, access, at) {
  if (access.kind === "signed-out" && !isActive(state)) {
    // The next one at this browser may be somebody else.
    return { ...state, access, configurations: [], eject: null };
  }
  if (access.kind !== "open") return { ...state, access };
  const configurations = access.configurations.map((configuration) => timed(configuration, at));
  const known = configurations.some(({ name }) => name === state.chosen);
  const chosen = known || isActive(state) ? state.chosen : preferred(configurations);
  return { ...state, access, configurations, chosen };
}

/** @param {Configuration[]} configurations @returns {string | null} the name to begin with */
function preferred(configurations) {
  const usable = configurations.filter(mayServe);
  const candidate =
    usable.find((configuration) => configuration.default) ?? usable[0] ?? configurations[0];
  return candidate ? candidate.name : null;
}

/** @param {Configuration} configuration @returns {boolean} whether the user may serve an image to it */
export function mayServe({ may }) {
  return may === undefined || may.includes("attach") || may.includes("resume");
}

/** @param {Configuration} configuration @param {number} at @returns {Configuration} */
function timed({ session, ...rest }, at) {
  if (session === null) return { session, ...rest };
  const left = session.seconds_left;
  return { ...rest, session: { ...session, until: left === null ? null : at + left * 1000 } };
}

/**
 * What was remembered of sessions that are over is forgotten, and where nobody chose, a session that waits for this
 * browser is what the page begins with.
 * @param {State} state
 * @returns {State}
 */
function followingOffer(state) {
  const ours = isActive(state) ? state.attachment?.configuration : undefined;
  const memos = state.memos.filter(({ configuration }) => {
    const known = state.configurations.find(({ name }) => name === configuration);
    return !known || known.session !== null || configuration === ours;
  });
  const next = memos.length === state.memos.length ? state : { ...state, memos };
  if (next.picked || next.image !== null || isActive(next)) return next;
  const waiting = next.configurations.find(({ name }) => offerAt(next, name) !== null);
  return waiting ? { ...next, chosen: waiting.name } : next;
}

/** @param {State} state @param {Memo} memo @returns {State} */
function remembered(state, memo) {
  return { ...state, memos: [...otherMemos(state, memo.configuration), memo] };
}

/** @param {State} state @param {string | null} name @returns {Memo[]} without that configuration's */
function otherMemos({ memos }, name) {
  return memos.filter(({ configuration }) => configuration !== name);
}

/** @param {State} state @param {Configuration} changed @param {number} at @returns {State} */
function withConfiguration(state, changed, at) {
  const configurations = state.configurations.map((known) =>
    known.name === changed.name ? timed({ ...changed, may: changed.may ?? known.may }, at) : known,
  );
  const freed = state.eject?.name === changed.name && changed.session === null;
  return { ...state, configurations, eject: freed ? null : state.eject };
}

/** @param {State} state @param {File} image @param {number} at @returns {State} */
function withImage(state, image, at) {
  const fresh = { ...state, attachment: null, findings: null, digest: null };
  if (image.size === 0) {
    return withProblem({ ...fresh, image: null }, emptyImage(image.name), at);
  }
  const chosen = { ...fresh, image, problem: null };
  const problem = offeredAnother(chosen);
  return problem === null ? chosen : withProblem(chosen, problem, at);
}

/** @param {State} state @returns {Problem | null} when the chosen session waits for another image than the chosen one */
function offeredAnother(state) {
  const { image, chosen } = state;
  const offer = offerAt(state, chosen);
  if (offer === null || image === null || chosen === null) return null;
  const expected = offer.memo.image;
  const differs = difference(expected, infoOf(image));
  return differs && notTheSame(differs, expected, infoOf(image), chosen);
}

/** @param {State} state @param {Problem} problem @param {number} at @returns {State} */
function withProblem(state, problem, at) {
  return log({ ...state, problem }, `${problem.headline} ${problem.detail}`, at);
}

/** @param {State} state @param {number} at @returns {State} */
function started(state, at) {
  const { image, chosen } = state;
  if (image === null) return { ...state, problem: state.problem ?? nothingChosen() };
  const another = offeredAnother(state);
  if (another !== null) return withProblem(state, another, at);
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
  // Ended in order: there is nothing to go on with.
  if (phase === "ended") next = { ...next, memos: otherMemos(state, after.configuration) };
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
