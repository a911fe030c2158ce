// The page: events go in to dispatch(), the state that they make is shown.

import { NBDServer } from "../nbd/nbd.js";
import { Activity } from "./activity.js";
import { access, eject, follow, linkAddress, login, logout } from "./api.js";
import { Digest } from "./digest.js";
import { reopen } from "./files.js";
import { pastOf, readHistory, withPast, writeHistory } from "./history.js";
import { inspect } from "./inspect/inspect.js";
import { blobSource } from "./inspect/source.js";
import { forget, recall, remember } from "./memory.js";
import { infoOf, isSame, offerAt } from "./resume.js";
import { attachmentOf, choiceOf, initial, isNeeded, reduce, underWay } from "./state.js";
import { View } from "./view.js";
import { cannotReopen, explain } from "./words.js";

const RETRY_MS = 3000;
const TICK_MS = 1000;

let state = initial(readHistory());
/** @type {WeakMap<File, Digest>} */
const digests = new WeakMap();
/**
 * @typedef {object} Serving what serves a configuration, or served it last
 * @property {NBDServer} server
 * @property {Activity} activity
 * @property {boolean} remembered whether the session can be gone on with after a reload
 */
/** @type {Map<string | null, Serving>} */
const serving = new Map();
let following = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let retry;

const view = new View({
  image: chooseImage,
  refuse: (problem) => dispatch({ type: "refuse", problem }),
  choose: (name) => dispatch({ type: "choose", name }),
  start: () => start(),
  digest: computeDigest,
  cancelDigest,
  resume,
  takeOver: () => start(true),
  stop,
  eject: ejectConfiguration,
  loginWithToken: (text) => enter({ token: tokenIn(text) ?? text.trim() }),
  loginWithPassword: (user, password) => enter({ user, password }),
  signOut,
});

/** @param {import("./state.js").Event} event */
function dispatch(event) {
  const before = state;
  state = reduce(state, event, Date.now());
  if (isNeeded(state) !== isNeeded(before)) guardTab(isNeeded(state));
  keepMemos(before, state);
  if (state.history !== before.history) writeHistory(state.history);
  render();
}

/** What the state remembers, the browser remembers. @param {typeof state} before @param {typeof state} after */
function keepMemos(before, after) {
  const names = new Set(after.memos.map(({ configuration }) => configuration));
  for (const { configuration } of before.memos) {
    if (!names.has(configuration)) forget(configuration);
  }
}

function render() {
  const attached = attachmentOf(state);
  const activity = (attached && serving.get(attached.configuration)?.activity) ?? null;
  view.render(state, activity, { wall: Date.now(), monotonic: monotonic() });
}

/** @param {File} image @param {FileSystemFileHandle | null} [handle] */
function chooseImage(image, handle = null) {
  take(image, handle);
  // Who answers the offer with its image need not press Start.
  const offer = offerAt(state, state.chosen);
  if (offer !== null && isSame(offer.memo.image, infoOf(image))) start();
}

/** @param {File} image @param {FileSystemFileHandle | null} [handle] */
function take(image, handle = null) {
  const { image: before } = choiceOf(state);
  dispatch({ type: "image", image, handle });
  // Nobody will see what comes of it.
  if (before !== null && before !== image) digests.get(before)?.cancel();
  inspect(blobSource(image)).then(
    (findings) => dispatch({ type: "findings", image, findings }),
    // It cannot be read: nbd.js says why, with a remedy, as soon as it is attached.
    () => {},
  );
}

function computeDigest() {
  const { image } = choiceOf(state);
  if (image === null) return;
  const digest = digests.get(image) ?? new Digest();
  digests.set(image, digest);
  digest.start(image, (progress) => dispatch({ type: "digest", image, digest: progress }));
}

function cancelDigest() {
  const { image } = choiceOf(state);
  if (image === null) return;
  digests.get(image)?.cancel();
  dispatch({ type: "digest", image, digest: null });
}

/** Goes on with the session that is offered. */
async function resume() {
  const offer = offerAt(state, state.chosen);
  if (offer === null) return;
  const { memo } = offer;
  const { image } = choiceOf(state);
  if (image !== null && isSame(memo.image, infoOf(image))) return start();
  const file = memo.handle && (await reopen(memo.handle));
  if (file) {
    chooseImage(file, memo.handle);
  } else if (memo.handle === null) {
    view.chooseFile();
  } else {
    dispatch({ type: "remember", memo: { ...memo, handle: null } });
    dispatch({ type: "refuse", problem: cannotReopen(memo.image.name) });
  }
}

/** @param {boolean} [takeover] from the tab that serves the same image, wherever that is */
async function start(takeover = false) {
  // Under a script's hands, go may be pressed before the server has told what it is.
  await entered;
  if (state.access === null || state.access.kind === "unreachable") await refresh();
  if (state.access?.kind === "unreachable") {
    dispatch({ type: "refuse", problem: explain({ code: "unreachable", reason: "" }) });
    return;
  }
  if (choiceOf(state).image === null && view.chosenFile !== null) {
    take(view.chosenFile);
  }
  const before = attachmentOf(state);
  const session = offerAt(state, state.chosen)?.memo.session;
  dispatch({ type: "start" });
  const attachment = attachmentOf(state);
  const { image } = choiceOf(state);
  if (image === null) {
    view.focusFile();
  } else if (attachment !== null && attachment !== before) {
    serve(image, attachment.configuration, { session, takeover });
  }
}

/**
 * @param {File} image
 * @param {string | null} configuration
 * @param {{session?: string, takeover: boolean}} how `session` is the one to go on with
 */
function serve(image, configuration, { session, takeover }) {
  const server = new NBDServer(linkAddress(configuration), image, {
    session: session ?? configuration !== null,
    takeover,
  });
  const one = { server, activity: new Activity(image.size), remembered: false };
  serving.set(configuration, one);
  server.addEventListener("state", ({ detail }) => {
    if (serving.get(configuration) === one) onLink(configuration, one, detail);
  });
  server.start();
}

/** @param {string | null} configuration @param {Serving} one @param {import("../nbd/nbd.js").State} detail */
function onLink(configuration, one, detail) {
  one.activity.add(detail);
  dispatch({ type: "link", configuration, detail });
  if (detail.phase === "serving" && !one.remembered) rememberSession(configuration, one);
  // The cookie is of no use any more: ask for the token.
  if (detail.error?.code === "not-allowed") refresh();
}

/** @param {string | null} configuration @param {Serving} one */
function rememberSession(configuration, one) {
  const { session } = one.server;
  const { image = null, handle = null } = state.attachments.get(configuration)?.choice ?? {};
  if (configuration === null || !session || image === null) return;
  one.remembered = true;
  const memo = { configuration, session, image: infoOf(image), handle };
  dispatch({ type: "remember", memo });
  remember(memo);
}

function stop() {
  const attachment = attachmentOf(state);
  dispatch({ type: "stop" });
  serving.get(attachment?.configuration ?? null)?.server.stop();
  // There is no link to say it on.
  if (attachment?.phase === "held" && attachment.configuration !== null) {
    ejectConfiguration(attachment.configuration, false);
  }
}

/** @param {string} name @param {boolean} force */
async function ejectConfiguration(name, force) {
  dispatch({ type: "eject", name });
  const answer = await eject(name, force);
  if ("configuration" in answer) {
    dispatch({ type: "eject-answer", name, error: "", forcible: false });
    dispatch({ type: "configuration", configuration: answer.configuration });
  } else {
    dispatch({ type: "eject-answer", name, ...answer });
  }
}

/** @param {import("./api.js").Credentials | null} credentials to trade for a cookie first */
async function enter(credentials) {
  const refused = credentials === null ? "" : await login(credentials);
  await refresh(refused);
}

async function signOut() {
  await logout();
  dispatch({ type: "forget" });
  await refresh();
}

/** Asks the server what it is and has. @param {string} [refused] why it took no credentials */
async function refresh(refused = "") {
  const answer = await access();
  const signedOut = answer.kind === "signed-out" && refused !== "";
  dispatch({
    type: "access",
    access: signedOut ? { ...answer, message: refused } : answer,
  });
  if (answer.kind === "open") followEvents();
  if (answer.kind === "unreachable") refreshLater();
}

function refreshLater() {
  clearTimeout(retry);
  retry = setTimeout(refresh, RETRY_MS);
}

function followEvents() {
  if (following) return;
  following = true;
  follow(
    (configuration) => dispatch({ type: "configuration", configuration }),
    () => {
      following = false;
      refreshLater();
    },
  );
}

/** @param {string} text an address that ends in #token=…, or that end @returns {string | null} */
function tokenIn(text) {
  return new URLSearchParams(text.slice(text.indexOf("#") + 1)).get("token");
}

/** @returns {{token: string} | null} the address's, which is thereby removed from it and from the history */
function takeToken() {
  const token = tokenIn(location.hash);
  if (token === null) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return { token };
}

/** @param {boolean} on whether closing the tab asks first */
function guardTab(on) {
  if (on) addEventListener("beforeunload", askFirst);
  else removeEventListener("beforeunload", askFirst);
}

/** @param {BeforeUnloadEvent} event */
function askFirst(event) {
  event.preventDefault();
  // Older browsers look at this alone. None shows the text.
  event.returnValue = "An image is attached.";
}

/** @returns {number} milliseconds on the clock of nbd.js's counters */
function monotonic() {
  return performance.timeOrigin + performance.now();
}

/** What this page serves ends with it, as far as its history can tell. */
addEventListener("pagehide", () => {
  const entries = underWay(state).map((one) =>
    pastOf(one, Date.now(), "The page was closed or reloaded."),
  );
  const history = entries.reduce(
    (all, past) => (past === null ? all : withPast(all, past)),
    state.history,
  );
  writeHistory(history);
});
addEventListener("hashchange", () => {
  const credentials = takeToken();
  if (credentials !== null) enter(credentials);
});
setInterval(() => {
  if (underWay(state).length > 0 || state.memos.length > 0) render();
}, TICK_MS);
render();
recall().then((memos) => dispatch({ type: "memos", memos }));
const entered = enter(takeToken());
