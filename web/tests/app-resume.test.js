// Going on after a reload, taking over, and the copy that lets a tab go: what the page makes of them.

import assert from "node:assert/strict";
import test from "node:test";
import { difference, infoOf, isAtHand, offerAt } from "../app/resume.js";
import { attachmentOf, initial, isActive, isNeeded, mayTakeOver, reduce } from "../app/state.js";
import { offerText, progress, summary } from "../app/words.js";

/** @typedef {import("../app/api.js").Session} Session */
/** @typedef {import("../app/state.js").Event} Event */
/** @typedef {import("../app/state.js").State} State */

const FILE = new File(["disk"], "x.iso", { lastModified: 1000 });
const IMAGE = infoOf(FILE);
const MEMO = { configuration: "lab", session: "ab".repeat(16), image: IMAGE, handle: null };

/** @param {Partial<Session>} [changes] @returns {Session} */
function session(changes = {}) {
  return {
    state: "held",
    image: IMAGE,
    device: "/dev/nbd0",
    size: 512,
    read_only: true,
    user: "local",
    from: "10.0.0.7:5000",
    since: 0,
    bytes_read: 0,
    requests: 0,
    seconds_left: 100,
    ...changes,
  };
}

/** @param {string} name @param {Session | null} value @returns {Event} */
function configuration(name, value) {
  const fields = { name, default: name === "0", device: "auto", metadata: null, session: value };
  return { type: "configuration", configuration: fields };
}

/** @type {Event} */
const OPEN = {
  type: "access",
  access: {
    kind: "open",
    user: "local",
    configurations: ["0", "lab"].map((name) => ({
      name,
      default: name === "0",
      device: "auto",
      metadata: null,
      session: name === "lab" ? session() : null,
    })),
  },
};
/** @type {Event} */
const MEMOS = { type: "memos", memos: [MEMO] };
/** @type {Event} */
const CHOSEN = { type: "image", image: FILE };

/** @param {any} detail @param {string} [configuration] @returns {Event} */
function link(detail, configuration = "0") {
  const rest = { bytes: 0, requests: 0, server: null, end: null, trouble: null, error: null };
  return { type: "link", configuration, detail: { phase: "serving", ...rest, ...detail } };
}

/** @param {...Event} events one a second @returns {State} */
function after(...events) {
  return events.reduce((state, event, i) => reduce(state, event, i * 1000), initial());
}

test("a session that waits is what the page begins with, in whatever order that is learned", () => {
  for (const events of [
    [OPEN, MEMOS],
    [MEMOS, OPEN],
  ]) {
    const state = after(...events);
    assert.equal(state.chosen, "lab");
    assert.equal(offerAt(state, "lab")?.memo, MEMO);
  }
  const late = after({ ...OPEN }, configuration("lab", session({ state: "attached" })), MEMOS);
  assert.equal(late.chosen, "0");
  assert.equal(reduce(late, configuration("lab", session()), 9).chosen, "lab");
});

test("the choice of a person stands", () => {
  const state = after(OPEN, { type: "choose", name: "0" }, MEMOS);
  assert.equal(state.chosen, "0");
});

test("nothing is offered for another image, a session that is served, or nobody's", () => {
  const other = { ...IMAGE, size: 5 };
  for (const value of [session({ image: other }), session({ state: "attached" }), null]) {
    assert.equal(offerAt(after(OPEN, MEMOS, configuration("lab", value)), "lab"), null);
  }
  assert.equal(offerAt(after(OPEN), "lab"), null);
});

test("what is over is forgotten: by the server's word, or by an end in order", () => {
  assert.deepEqual(after(OPEN, MEMOS, configuration("lab", null)).memos, []);
  const served = after(OPEN, MEMOS, CHOSEN, { type: "start" }, link({ phase: "ended" }, "lab"));
  assert.deepEqual(served.memos, []);
  const error = { code: "lost", reason: "" };
  const failed = after(OPEN, MEMOS, CHOSEN, { type: "start" }, link({ phase: "ended", error }));
  assert.deepEqual(failed.memos, [MEMO]);
});

test("a late word of the time before does not forget what this tab serves", () => {
  const state = after(OPEN, MEMOS, CHOSEN, { type: "start" }, configuration("lab", null));
  assert.ok(isActive(state));
  assert.deepEqual(state.memos, [MEMO]);
});

test("what the browser recalls late takes nothing from what this tab serves by now", () => {
  const memo = { ...MEMO, session: "cd".repeat(16) };
  const begun = after(OPEN, CHOSEN, { type: "start" }, { type: "remember", memo });
  assert.deepEqual(reduce(begun, { type: "memos", memos: [] }, 9).memos, [memo]);
  const other = { ...MEMO, configuration: "gone" };
  const state = reduce(begun, { type: "memos", memos: [MEMO, other] }, 9);
  assert.deepEqual(state.memos, [other, memo]);
});

test("the time that is left goes on between the server's words", () => {
  const offer = offerAt(after(OPEN, MEMOS), "lab");
  assert.ok(offer);
  assert.match(offerText(offer, true, 40_000), /waits for 1:00 more\.$/);
  assert.match(offerText(offer, false, 40_000), /Choose the same file to go on\.$/);
});

test("what tells two images apart: name, size, time", () => {
  assert.equal(difference(IMAGE, IMAGE), null);
  assert.equal(difference(IMAGE, { ...IMAGE, name: "y" }), "name");
  assert.equal(difference(IMAGE, { ...IMAGE, size: 9 }), "size");
  assert.equal(difference(IMAGE, { ...IMAGE, modified: 9 }), "modified");
});

test("another image than the one waited for is named, and does not start", () => {
  const another = new File(["disc"], "x.iso", { lastModified: 2000 });
  const state = after(OPEN, MEMOS, { type: "image", image: another }, { type: "start" });
  assert.equal(state.problem?.headline, "Not the same image.");
  assert.equal(attachmentOf(state), null);
  const elsewhere = reduce(state, { type: "choose", name: "0" }, 9);
  assert.equal(elsewhere.problem, null);
  assert.ok(isActive(reduce(elsewhere, { type: "start" }, 9)));
});

test("one click is enough with a handle, or with the file still chosen", () => {
  const offer = offerAt(after(OPEN, MEMOS), "lab");
  assert.ok(offer);
  assert.equal(isAtHand(offer, null), false);
  assert.equal(isAtHand(offer, FILE), true);
  const handle = /** @type {any} */ ({});
  assert.equal(isAtHand({ ...offer, memo: { ...MEMO, handle } }, null), true);
});

test("take over is for the same user, with the same image, where somebody is there", () => {
  const error = { code: "busy", reason: "in use by local from 10.0.0.7" };
  const busy = after(
    OPEN,
    configuration("0", session({ state: "attached" })),
    CHOSEN,
    { type: "start" },
    link({ phase: "ended", error }),
  );
  assert.ok(mayTakeOver(busy));
  for (const change of [
    { user: "anna" },
    { image: { ...IMAGE, size: 5 } },
    { state: /** @type {const} */ ("draining") },
  ]) {
    const value = session({ state: "attached", ...change });
    assert.equal(mayTakeOver(reduce(busy, configuration("0", value), 9)), false);
  }
  assert.equal(mayTakeOver(reduce(busy, configuration("0", null), 9)), false);
});

test("the tab is needed until the copy is whole, and the page says so", () => {
  const keep = { bytes: 50, size: 200, whole: false, seconds_left: 70, problem: null };
  /** @param {object} now */
  const served = (now) =>
    after(
      OPEN,
      CHOSEN,
      { type: "start" },
      link({ server: { phase: "attached", device: "/dev/nbd0", keep: now } }),
    );
  const copying = served(keep);
  assert.ok(isNeeded(copying));
  assert.equal(
    progress(attachmentOf(copying)).text,
    "Copied to the machine: 25% (50 bytes of 200 bytes, 1:10 left).",
  );
  const whole = served({ ...keep, whole: true });
  assert.equal(isNeeded(whole), false);
  assert.ok(isActive(whole));
  assert.match(summary(whole, attachmentOf(whole), null).detail, /this tab may be closed/);
  assert.match(whole.log.map(({ text }) => text).join("\n"), /this tab may be closed/);
  const failed = served({ ...keep, problem: "the disk is full" });
  assert.equal(progress(attachmentOf(failed)).text, "");
  assert.match(failed.log.map(({ text }) => text).join("\n"), /The disk is full\./);
});

test("reconnecting shows the time that is left", () => {
  const held = { secondsLeft: 83, reason: "lost" };
  const state = after(OPEN, CHOSEN, { type: "start" }, link({}), link({ phase: "held", held }));
  assert.equal(summary(state, attachmentOf(state), null).headline, "Reconnecting…");
  assert.match(progress(attachmentOf(state)).text, /^Reconnecting: 1:23 left/);
});

test("a disk that the machine had given up is not called connected again", () => {
  const server = { phase: "attached", device: "/dev/nbd0" };
  const state = after(
    OPEN,
    CHOSEN,
    { type: "start" },
    link({ server: { ...server, resumed: false } }),
    link({ phase: "held" }),
    link({ server: { ...server, resumed: false } }),
  );
  assert.match(state.log[state.log.length - 1].text, /^The machine had given the disk up/);
});
