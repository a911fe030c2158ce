import assert from "node:assert/strict";
import test from "node:test";
import { NO_CHOICE } from "../app/attachment.js";
import { initial } from "../app/state.js";
import { explain, paddingNote, sentence, summary, usage } from "../app/words.js";

const CODES = [
  "no-image",
  "empty-image",
  "image-changed",
  "image-gone",
  "image-denied",
  "image-unreadable",
  "unreachable",
  "lost",
  "silent",
  "protocol",
  "not-allowed",
  "no-configuration",
  "busy",
  "other-image",
  "superseded",
  "too-many",
  "closed",
  "bad-address",
  "internal",
];

test("each error has a headline of its own sentence and keeps the server's words", () => {
  for (const code of CODES) {
    const { headline, detail } = explain({ code, reason: "the server's words" });
    assert.match(headline, /^[A-Z].*\.$/, code);
    assert.match(detail, /^The server's words\./, code);
  }
});

test("an error that nobody knows still says what to do", () => {
  assert.deepEqual(explain(null), {
    headline: "Something went wrong.",
    detail: "Reload the page and try again.",
  });
});

test("a sentence has a capital letter and one full stop", () => {
  assert.equal(sentence("in use by local"), "In use by local.");
  assert.equal(sentence("Done."), "Done.");
  assert.equal(sentence("“x.iso”"), "“x.iso”.");
  assert.equal(sentence("/dev/nbd0 is open (4711)"), "/dev/nbd0 is open (4711).");
  assert.equal(sentence(""), "");
});

test("only sizes that are no multiple of 512 are remarked upon", () => {
  assert.equal(paddingNote(1024), "");
  assert.match(paddingNote(1_000_001), /447 bytes of zeros/);
  assert.match(paddingNote(1023), /1 byte of zeros/);
});

test("the summary begins with what there is to do", () => {
  assert.equal(summary(initial(), null, null).detail, "Choose an image first.");
  const image = new File(["x"], "x.iso");
  assert.equal(summary(initial(), null, image).headline, "Ready.");
  const problem = { headline: "No image is chosen.", detail: "" };
  assert.equal(summary({ ...initial(), problem }, null, null).tone, "bad");
});

test("every phase has words and a tone", () => {
  const link = {
    phase: /** @type {const} */ ("serving"),
    bytes: 0,
    requests: 0,
    server: null,
    end: null,
    trouble: null,
    error: null,
  };
  const attachment = {
    configuration: "0",
    choice: NO_CHOICE,
    image: "x.iso",
    link,
    attachedAt: null,
    overAt: null,
  };
  const phases = /** @type {const} */ ([
    "connecting",
    "attaching",
    "attached",
    "held",
    "draining",
    "stopping",
    "ended",
    "failed",
  ]);
  const summaries = phases.map((phase) => summary(initial(), { ...attachment, phase }, null));
  assert.deepEqual(
    summaries.map(({ tone }) => tone),
    ["wait", "wait", "good", "wait", "wait", "wait", "idle", "bad"],
  );
  assert.equal(new Set(summaries.map(({ headline }) => headline)).size, phases.length);
});

test("a configuration's use names image, device and user", () => {
  const session = {
    state: /** @type {const} */ ("attached"),
    image: { name: "x.iso", size: 5, modified: null },
    device: "/dev/nbd0",
    size: 512,
    read_only: true,
    user: "local",
    from: "10.0.0.7:5000",
    since: 0,
    bytes_read: 0,
    requests: 0,
    seconds_left: null,
  };
  assert.equal(usage(null, false), "Free");
  assert.equal(usage(null, true), "Used by this tab");
  assert.equal(usage(session, true), "“x.iso” as /dev/nbd0 from this tab");
  const draining = { ...session, state: /** @type {const} */ ("draining") };
  assert.match(usage(draining, false), /still open on the machine$/);
  assert.match(
    usage({ ...draining, draining_for: ["mount /mnt"] }, false),
    /waits for mount \/mnt$/,
  );
  assert.equal(usage(session, false), "“x.iso” as /dev/nbd0 by local from 10.0.0.7:5000");
  assert.match(
    usage({ ...session, state: "held", seconds_left: 287 }, false),
    /kept for 4:47 more$/,
  );
});

test("each way in which a server refuses or ends says what to do", () => {
  const codes = [
    ["not-allowed", 4401, /Sign in/],
    ["no-configuration", 4404, /Choose another/],
    ["silent", null, /Start again/],
    ["busy", 4409, /another configuration/],
    ["other-image", 4410, /same, unchanged file/],
    ["superseded", 4412, /nothing is lost/],
    ["too-many", 4429, /wait a minute/],
    ["closed", 4400, /Choose another one/],
    ["closed", 4500, /nbd-proxy check/],
    ["closed", 1011, /its log says why/],
    ["lost", 1006, /Start again/],
  ];
  const headlines = codes.map(([code, closeCode, remedy]) => {
    const error = { code: String(code), reason: "why", closeCode: Number(closeCode) };
    const { headline, detail } = explain(error);
    assert.match(detail, /^Why\. /);
    assert.match(detail, /** @type {RegExp} */ (remedy));
    return headline;
  });
  assert.equal(new Set(headlines).size, codes.length);
});
