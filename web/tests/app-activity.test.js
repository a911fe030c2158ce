import assert from "node:assert/strict";
import test from "node:test";
import { Activity, BARS, CELLS } from "../app/activity.js";
import { reading } from "../app/activity-card.js";

const MIB = 1 << 20;

/** @param {number} time @param {number} bytes @param {import("../nbd/nbd.js").Range[]} [reads] */
function news(time, bytes, reads = []) {
  return { time, bytes, reads, lastRead: null };
}

test("the map tells what was read, what in part, and what just now", () => {
  const activity = new Activity(CELLS * MIB);
  activity.add(
    news(1000, 3 * MIB, [
      { offset: 0, length: 2 * MIB },
      { offset: 7 * MIB, length: 4096 },
    ]),
  );
  assert.deepEqual(activity.cells(1500).slice(0, 9), ["now", "now", "", "", "", "", "", "now", ""]);
  assert.deepEqual(activity.cells(9000).slice(0, 9), [
    "all",
    "all",
    "",
    "",
    "",
    "",
    "",
    "some",
    "",
  ]);
});

test("a whole image is all of it, however little it holds", () => {
  for (const size of [1, 513, 1_000_001, 5_000_000_001]) {
    const activity = new Activity(size);
    assert.equal(activity.share(), 0);
    activity.add(news(0, size, [{ offset: 0, length: size }]));
    assert.equal(activity.share(), 1);
  }
});

test("the plot has bytes a second in its bars, the newest last, and forgets the oldest", () => {
  const activity = new Activity(MIB);
  activity.add(news(2000, 4000));
  activity.add(news(4500, 5000));
  const series = activity.series(6000);
  assert.equal(series.length, BARS);
  assert.deepEqual(series.slice(-3), [2000, 500, 0]);
  assert.equal(Math.max(...activity.series(6000 + BARS * 2000)), 0);
});

test("what the machine reads is told, and how long ago it was where it is idle since long", () => {
  const lastRead = { offset: 5_000_000, length: 4096, time: 10_000 };
  assert.equal(reading({ lastRead: null }, true, 9_000), "The machine has read nothing yet.");
  assert.equal(reading({ lastRead }, true, 11_000), "Reading 4.10 kB at 5.00 MB.");
  const idle = reading({ lastRead }, true, 10_000 + 3_600_000);
  assert.equal(idle, "Idle. Last read 1:00:00 ago: 4.10 kB at 5.00 MB.");
  assert.equal(reading({ lastRead }, false, 11_000), "The last read was of 4.10 kB at 5.00 MB.");
});
