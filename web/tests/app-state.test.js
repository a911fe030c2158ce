import assert from "node:assert/strict";
import test from "node:test";
import { attachmentOf, choiceOf, initial, isActive, reduce } from "../app/state.js";

/** @typedef {import("../app/state.js").Event} Event */
/** @typedef {import("../app/attachment.js").LinkDetail} LinkDetail */
/** @typedef {import("../app/state.js").State} State */

/** @param {string} name @param {boolean} [isDefault] @returns {import("../app/api.js").Configuration} */
function configuration(name, isDefault = false) {
  return { name, default: isDefault, device: "auto", metadata: null, session: null };
}

/** @type {Event} */
const OPEN = {
  type: "access",
  access: {
    kind: "open",
    user: "local",
    configurations: [configuration("0"), configuration("lab", true)],
  },
};
const IMAGE = /** @type {Event} */ ({ type: "image", image: new File(["disk"], "x.iso") });

/** @param {Partial<LinkDetail>} detail @param {string | null} [configuration] @returns {Event} */
function link(detail, configuration = "lab") {
  const rest = { bytes: 0, requests: 0, server: null, end: null, trouble: null, error: null };
  return { type: "link", configuration, detail: { phase: "serving", ...rest, ...detail } };
}

/** @param {"attaching" | "attached" | "held" | "draining"} phase @param {string | null} device */
function server(phase, device = null) {
  return link({ server: { phase, device } });
}

/** @param {...Event} events one a second @returns {State} */
function after(...events) {
  return events.reduce((state, event, i) => reduce(state, event, i * 1000), initial());
}

/** @param {State} state @returns {string[]} */
function logged(state) {
  return state.log.map(({ text }) => text);
}

const ATTACHED = [
  OPEN,
  IMAGE,
  /** @type {Event} */ ({ type: "start" }),
  server("attached", "/dev/nbd0"),
];

test("the default configuration is chosen, else the first, and a choice is kept", () => {
  assert.equal(after(OPEN).chosen, "lab");
  const first = {
    kind: /** @type {const} */ ("open"),
    user: "local",
    configurations: [configuration("a"), configuration("b")],
  };
  assert.equal(after({ type: "access", access: first }).chosen, "a");
  assert.equal(after(OPEN, { type: "choose", name: "0" }, OPEN).chosen, "0");
});

test("a start without an image says so and starts nothing", () => {
  const state = after(OPEN, { type: "start" });
  assert.equal(attachmentOf(state), null);
  assert.equal(state.problem?.headline, "No image is chosen.");
});

test("an empty image is refused before anything connects", () => {
  const state = after(OPEN, { type: "image", image: new File([], "x.iso") }, { type: "start" });
  assert.equal(choiceOf(state).image, null);
  assert.equal(attachmentOf(state), null);
  assert.equal(state.problem?.headline, "Nothing to attach.");
});

test("a second start changes nothing while the first goes on", () => {
  const state = after(OPEN, IMAGE, { type: "start" });
  assert.ok(isActive(state));
  assert.equal(reduce(state, { type: "start" }, 9), state);
});

test("an image cannot change while it is attached", () => {
  const state = after(...ATTACHED);
  assert.equal(reduce(state, { type: "image", image: new File(["y"], "y.iso") }, 9), state);
});

test("another image can be attached to another configuration meanwhile", () => {
  const other = /** @type {Event} */ ({ type: "image", image: new File(["other"], "y.iso") });
  const state = after(
    ...ATTACHED,
    { type: "choose", name: "0" },
    other,
    { type: "start" },
    link({ server: { phase: "attached", device: "/dev/nbd1" } }, "0"),
  );
  assert.equal(choiceOf(state).image?.name, "y.iso");
  assert.equal(attachmentOf(state)?.link.server?.device, "/dev/nbd1");
  const back = reduce(state, { type: "choose", name: "lab" }, 9);
  assert.equal(choiceOf(back).image?.name, "x.iso");
  const stopped = reduce(reduce(back, { type: "stop" }, 9), link({ phase: "ended" }), 9);
  assert.equal(attachmentOf(stopped)?.phase, "ended");
  assert.equal(stopped.attachments.get("0")?.phase, "attached");
});

test("an image that is not attached yet goes along to another configuration, one that is stays", () => {
  const chosen = after(OPEN, IMAGE, { type: "choose", name: "0" });
  assert.equal(choiceOf(chosen).image?.name, "x.iso");
  const attached = after(...ATTACHED, { type: "choose", name: "0" });
  assert.equal(choiceOf(attached).image, null);
});

test("what is found out about an image reaches it after it was attached, and no other", () => {
  const image = /** @type {any} */ (IMAGE).image;
  const digest = { done: 1, hex: "ab", error: "" };
  const state = after(...ATTACHED, { type: "digest", image, digest });
  assert.equal(choiceOf(state).digest?.hex, "ab");
  const stray = { type: /** @type {const} */ ("digest"), image: new File(["z"], "z"), digest };
  assert.equal(reduce(state, stray, 9), state);
});

test("a session that is over is in the history, with how it ended; one that never began is not", () => {
  const end = { reason: "ejected", message: "ejected by local" };
  const state = after(...ATTACHED, link({ bytes: 7 }), link({ phase: "ended", bytes: 9, end }));
  assert.deepEqual(state.history, [
    {
      image: "x.iso",
      configuration: "lab",
      from: 3000,
      to: 5000,
      bytes: 9,
      how: "Ejected by local.",
    },
  ]);
  const error = { code: "busy", reason: "in use" };
  const refused = after(OPEN, IMAGE, { type: "start" }, link({ phase: "ended", error }));
  assert.deepEqual(refused.history, []);
});

test("an image goes from connecting to attached, by what link and server tell", () => {
  const start = after(OPEN, IMAGE, { type: "start" });
  assert.equal(attachmentOf(start)?.phase, "connecting");
  const serving = reduce(start, link({}), 5);
  assert.equal(attachmentOf(serving)?.phase, "attaching");
  const attached = reduce(serving, server("attached", "/dev/nbd0"), 6);
  assert.equal(attachmentOf(attached)?.phase, "attached");
  assert.equal(attachmentOf(attached)?.attachedAt, 6);
  assert.deepEqual(logged(attached), [
    "Attaching “x.iso” (4 bytes) to configuration “lab”.",
    "Attached as /dev/nbd0.",
  ]);
});

test("a plain link counts as attached when requests are answered", () => {
  const state = after(
    { type: "access", access: { kind: "plain" } },
    IMAGE,
    { type: "start" },
    link({}, null),
  );
  assert.equal(attachmentOf(state)?.configuration, null);
  assert.equal(attachmentOf(state)?.phase, "attached");
});

test("progress is no event for the log", () => {
  const state = after(...ATTACHED);
  const detail = {
    bytes: 7,
    requests: 2,
    server: { phase: /** @type {const} */ ("attached"), device: "/dev/nbd0" },
  };
  const next = reduce(state, link(detail), 9);
  assert.equal(attachmentOf(next)?.link.bytes, 7);
  assert.equal(next.log, state.log);
});

test("a lost link that comes back goes on with its elapsed time", () => {
  const state = after(...ATTACHED, link({ phase: "held" }), server("attached", "/dev/nbd0"));
  assert.equal(attachmentOf(state)?.phase, "attached");
  assert.equal(attachmentOf(state)?.attachedAt, 3000);
  assert.deepEqual(logged(state).slice(-2), [
    "The connection was lost; connecting again.",
    "Connected again as /dev/nbd0.",
  ]);
});

test("stopping is not undone by what the server still tells", () => {
  const state = after(...ATTACHED, { type: "stop" }, server("draining"));
  assert.equal(attachmentOf(state)?.phase, "stopping");
  const over = reduce(state, link({ phase: "ended" }), 9000);
  assert.equal(attachmentOf(over)?.phase, "ended");
  assert.equal(attachmentOf(over)?.overAt, 9000);
  assert.equal(isActive(over), false);
});

test("an error of the link is a failure with its words in the log", () => {
  const error = { code: "busy", reason: "in use by local from 127.0.0.1:9" };
  const state = after(OPEN, IMAGE, { type: "start" }, link({ phase: "ended", error }));
  assert.equal(attachmentOf(state)?.phase, "failed");
  assert.match(logged(state)[1], /^In use\. In use by local from 127\.0\.0\.1:9\. /);
});

test("what comes after the end is ignored", () => {
  const state = after(...ATTACHED, link({ phase: "ended" }));
  assert.equal(reduce(state, server("attached"), 9), state);
  assert.equal(reduce(state, { type: "stop" }, 9), state);
});

test("trouble with reading is logged once, and its end too", () => {
  const trouble = { code: "image-changed", reason: "it changed" };
  const lost = link({ trouble });
  const state = after(...ATTACHED, lost, lost, link({}));
  assert.deepEqual(
    logged(state).filter((text) => /image|changed/.test(text)),
    ["It changed.", "The image can be read again."],
  );
});

test("the log keeps the newest hundred lines", () => {
  const problem = { headline: "No.", detail: "" };
  const events = Array.from(
    { length: 150 },
    () => /** @type {Event} */ ({ type: "refuse", problem }),
  );
  const state = after(...events);
  assert.equal(state.log.length, 100);
  assert.equal(state.log[99].at, 149_000);
});

test("a refused eject says why until the configuration is free", () => {
  const refused = after(
    OPEN,
    { type: "eject", name: "0" },
    { type: "eject-answer", name: "0", error: "/dev/nbd0 is mounted", forcible: true },
  );
  assert.equal(refused.ejects.get("0")?.error, "/dev/nbd0 is mounted");
  assert.equal(refused.ejects.get("0")?.waiting, false);
  const free = reduce(refused, { type: "configuration", configuration: configuration("0") }, 9);
  assert.equal(free.ejects.size, 0);
});

test("a configuration's change reaches it alone", () => {
  const state = after(OPEN, {
    type: "configuration",
    configuration: { ...configuration("0"), device: "nbd:" },
  });
  assert.deepEqual(
    state.configurations.map(({ device }) => device),
    ["nbd:", "auto"],
  );
});

test("what somebody may do is remembered when an event, which is for everybody, does not tell it", () => {
  /** @type {import("../app/api.js").Configuration} */
  const told = { ...configuration("0"), may: ["look"] };
  /** @type {Event} */
  const open = { type: "access", access: { kind: "open", user: "eva", configurations: [told] } };
  const state = after(open, { type: "configuration", configuration: configuration("0") });
  assert.deepEqual(state.configurations[0].may, ["look"]);
});

test("a configuration that the user may serve an image to is chosen before one that they may not", () => {
  /** @type {import("../app/api.js").Configuration[]} */
  const configurations = [
    { ...configuration("seen", true), may: ["look"] },
    { ...configuration("own"), may: ["attach", "look"] },
  ];
  const access = { kind: /** @type {const} */ ("open"), user: "eva", configurations };
  assert.equal(after({ type: "access", access }).chosen, "own");
});

test("whoever signs out takes the list along, unless their image is still attached", () => {
  /** @type {Event} */
  const out = { type: "access", access: { kind: "signed-out", message: "", ways: ["password"] } };
  assert.deepEqual(after(OPEN, out).configurations, []);
  assert.equal(after(...ATTACHED, out).configurations.length, 2);
});

test("who signs out leaves no history to the next one", () => {
  const state = after(...ATTACHED, link({ phase: "ended" }), { type: "forget" });
  assert.deepEqual([state.history, state.log], [[], []]);
});
