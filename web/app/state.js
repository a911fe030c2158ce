// All that the page knows, and how each event changes it. Pure: time comes with the events.

import { begin, follow, isUnderWay, NO_CHOICE, notable } from "./attachment.js";
import { bytes, quoted } from "./format.js";
import { ending, pastOf, withPast } from "./history.js";
import { difference, infoOf, isSame, offerAt } from "./resume.js";
import { emptyImage, named, nothingChosen, notTheSame, sentence } from "./words.js";

/** @typedef {import("./api.js").Access} Access */
/** @typedef {import("./api.js").Configuration} Configuration */
/** @typedef {import("./attachment.js").Attachment} Attachment */
/** @typedef {import("./attachment.js").Choice} Choice */
/** @typedef {import("./attachment.js").LinkDetail} LinkDetail */
/** @typedef {import("./history.js").Past} Past */
/** @typedef {import("./resume.js").Memo} Memo */
/** @typedef {import("./words.js").Problem} Problem */

/**
 * @typedef {object} Eject
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
 * @property {Choice} draft the image that is attached next
 * @property {Memo[]} memos what this browser has served and may go on with
 * @property {Problem | null} problem that kept the page from starting
 * @property {ReadonlyMap<string | null, Attachment>} attachments by configuration, the latest of each
 * @property {ReadonlyMap<string, Eject>} ejects by configuration
 * @property {Past[]} history newest first
 * @property {{at: number, text: string}[]} log newest last
 */

/**
 * @typedef {{type: "access", access: Access}
 *   | {type: "configuration", configuration: Configuration}
 *   | {type: "choose", name: string}
 *   | {type: "image", image: File, handle?: FileSystemFileHandle | null}
 *   | {type: "findings", image: File, findings: NonNullable<Choice["findings"]>}
 *   | {type: "digest", image: File, digest: Choice["digest"]}
 *   | {type: "memos", memos: Memo[]}
 *   | {type: "remember", memo: Memo}
 *   | {type: "refuse", problem: Problem}
 *   | {type: "start"}
 *   | {type: "link", configuration: string | null, detail: LinkDetail}
 *   | {type: "stop"}
 *   | {type: "forget"}
 *   | {type: "eject", name: string}
 *   | {type: "eject-answer", name: string, error: string, forcible: boolean}} Event
 */

const LOG_LIMIT = 100;

/** @param {Past[]} [history] @returns {State} */
export function initial(history = []) {
  return {
    access: null,
    configurations: [],
    chosen: null,
    picked: false,
    draft: NO_CHOICE,
    memos: [],
    problem: null,
    attachments: new Map(),
    ejects: new Map(),
    history,
    log: [],
  };
}

/** @param {State} state @returns {Attachment | null} the chosen configuration's */
export function attachmentOf({ attachments, chosen }) {
  return attachments.get(chosen) ?? null;
}

/** @param {State} state @returns {Choice} what the chosen configuration serves, or would get */
export function choiceOf(state) {
  return attachmentOf(state)?.choice ?? state.draft;
}

/** @param {State} state @returns {boolean} whether the chosen configuration is served from here, or about to be */
export function isActive(state) {
  return isUnderWay(attachmentOf(state));
}

/** @param {State} state @returns {Attachment[]} all that this tab serves, or is about to or stops to */
export function underWay({ attachments }) {
  return [...attachments.values()].filter(isUnderWay);
}

/** @param {State} state @returns {boolean} whether the machine would miss this tab */
export function isNeeded(state) {
  return underWay(state).some(({ link }) => !link.server?.keep?.whole);
}

/**
 * @param {State} state
 * @returns {boolean} whether the start was refused for a session that is this user's own, with the same image
 */
export function mayTakeOver(state) {
  const { access, configurations } = state;
  const attachment = attachmentOf(state);
  const { image } = choiceOf(state);
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
      return withKnowledge(state, event.image, { findings: event.findings });
    case "digest":
      return withKnowledge(state, event.image, { digest: event.digest });
    case "memos":
      return followingOffer(withRecalled(state, event.memos));
    case "remember":
      return remembered(state, event.memo);
    case "eject":
      return withEject(state, event.name, { waiting: true, error: "", forcible: false });
    case "eject-answer":
      return withEjectAnswer(state, event, at);
    case "forget":
      // The next one at this browser may be somebody else.
      return { ...state, history: [], log: [] };
    case "choose":
      return { ...state, chosen: event.name, picked: true, problem: null };
    case "link":
      return withLink(state, event.configuration, event.detail, at);
    default:
      if (isActive(state)) return event.type === "stop" ? stopping(state) : state;
      return reduceIdle(state, event, at);
  }
}

/** @param {State} state whose chosen configuration is not served from here @param {Event} event @param {number} at @returns {State} */
function reduceIdle(state, event, at) {
  switch (event.type) {
    case "image":
      return withImage(state, event.image, event.handle ?? null, at);
    case "refuse":
      return withProblem(state, event.problem, at);
    case "start":
      return started(state, at);
    default:
      return state;
  }
}

/** @param {State} state @param {Access} access @param {number} at @returns {State} */
function withAccess(state, access, at) {
  const active = underWay(state).length > 0;
  if (access.kind === "signed-out" && !active) {
    // The next one at this browser may be somebody else.
    return { ...state, access, configurations: [], ejects: new Map() };
  }
  if (access.kind !== "open") return { ...state, access };
  const configurations = access.configurations.map((configuration) => timed(configuration, at));
  const known = configurations.some(({ name }) => name === state.chosen);
  const chosen = known || active ? state.chosen : preferred(configurations);
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
  const ours = underWay(state).map(({ configuration }) => configuration);
  const memos = state.memos.filter(({ configuration }) => {
    const known = state.configurations.find(({ name }) => name === configuration);
    return !known || known.session !== null || ours.includes(configuration);
  });
  const next = memos.length === state.memos.length ? state : { ...state, memos };
  if (next.picked || next.draft.image !== null || ours.length > 0) return next;
  const waiting = next.configurations.find(({ name }) => offerAt(next, name) !== null);
  return waiting ? { ...next, chosen: waiting.name } : next;
}

/**
 * What the browser remembers from before, which may take it a while: what this tab serves by now is newer.
 * @param {State} state
 * @param {Memo[]} memos
 * @returns {State}
 */
function withRecalled(state, memos) {
  const newer = new Set(state.memos.map(({ configuration }) => configuration));
  const older = memos.filter(({ configuration }) => !newer.has(configuration));
  return { ...state, memos: [...older, ...state.memos] };
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
  const next = { ...state, configurations };
  return changed.session === null ? withEject(next, changed.name, null) : next;
}

/**
 * What is found out about an image, wherever it is by now.
 * @param {State} state
 * @param {File} image
 * @param {Partial<Choice>} known
 * @returns {State}
 */
function withKnowledge(state, image, known) {
  const { draft } = state;
  if (draft.image === image) return { ...state, draft: { ...draft, ...known } };
  const served = [...state.attachments.values()].find(({ choice }) => choice.image === image);
  if (!served) return state;
  return withAttachment(state, { ...served, choice: { ...served.choice, ...known } });
}

/** @param {State} state @param {Attachment} attachment in place of its configuration's last one @returns {State} */
function withAttachment(state, attachment) {
  const { configuration } = attachment;
  return { ...state, attachments: new Map(state.attachments).set(configuration, attachment) };
}

/** @param {State} state @param {File} image @param {Choice["handle"]} handle @param {number} at @returns {State} */
function withImage(state, image, handle, at) {
  const attachments = new Map(state.attachments);
  // What was there is over; the card shows what comes next.
  attachments.delete(state.chosen);
  const fresh = { ...state, attachments, draft: NO_CHOICE };
  if (image.size === 0) return withProblem(fresh, emptyImage(image.name), at);
  const chosen = { ...fresh, draft: { ...NO_CHOICE, image, handle }, problem: null };
  const problem = offeredAnother(chosen);
  return problem === null ? chosen : withProblem(chosen, problem, at);
}

/** @param {State} state @returns {Problem | null} when the chosen session waits for another image than the chosen one */
function offeredAnother(state) {
  const { chosen } = state;
  const { image } = choiceOf(state);
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
  const { chosen } = state;
  const choice = choiceOf(state);
  const { image } = choice;
  if (image === null) return { ...state, problem: state.problem ?? nothingChosen() };
  const another = offeredAnother(state);
  if (another !== null) return withProblem(state, another, at);
  const draft = choice === state.draft ? NO_CHOICE : state.draft;
  const where = chosen === null ? "" : ` to ${named(chosen)}`;
  return log(
    withAttachment({ ...state, problem: null, draft }, begin(chosen, choice, image)),
    `Attaching ${quoted(image.name)} (${bytes(image.size)})${where}.`,
    at,
  );
}

/**
 * @param {State} state
 * @param {string | null} configuration
 * @param {LinkDetail} detail
 * @param {number} at
 * @returns {State}
 */
function withLink(state, configuration, detail, at) {
  const before = state.attachments.get(configuration) ?? null;
  if (before === null || !isUnderWay(before)) return state;
  const after = follow(before, detail, at);
  let next = withAttachment(state, after);
  // Ended in order: there is nothing to go on with.
  if (after.phase === "ended") next = { ...next, memos: otherMemos(state, configuration) };
  const past = isUnderWay(after) ? null : pastOf(after, at, ending(after));
  if (past !== null) next = { ...next, history: withPast(next.history, past) };
  const whose = state.attachments.size > 1 && configuration !== null ? `${configuration}: ` : "";
  for (const text of notable(before, after)) next = log(next, whose + text, at);
  return next;
}

/** @param {State} state whose chosen configuration is served from here @returns {State} */
function stopping(state) {
  const attachment = /** @type {Attachment} */ (attachmentOf(state));
  return withAttachment(state, { ...attachment, phase: "stopping" });
}

/** @param {State} state @param {string} name @param {Eject | null} eject @returns {State} */
function withEject(state, name, eject) {
  if (eject === null && !state.ejects.has(name)) return state;
  const ejects = new Map(state.ejects);
  if (eject === null) ejects.delete(name);
  else ejects.set(name, eject);
  return { ...state, ejects };
}

/**
 * @param {State} state
 * @param {{name: string, error: string, forcible: boolean}} answer
 * @param {number} at
 * @returns {State}
 */
function withEjectAnswer(state, { name, error, forcible }, at) {
  if (error === "") return log(withEject(state, name, null), `Ejected ${named(name)}.`, at);
  const text = `Not ejected: ${sentence(error)}`;
  return log(withEject(state, name, { waiting: false, error, forcible }), text, at);
}

/** @param {State} state @param {string} text @param {number} at @returns {State} */
function log(state, text, at) {
  return { ...state, log: [...state.log, { at, text }].slice(-LOG_LIMIT) };
}
