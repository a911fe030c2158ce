import assert from "node:assert/strict";
import test from "node:test";
import { RateMeter } from "../app/rate.js";

/** @param {[number, number][]} samples time and total @returns {RateMeter} */
function meter(samples) {
  const made = new RateMeter();
  for (const [time, total] of samples) made.add(time, total);
  return made;
}

test("nothing counted is no rate", () => {
  assert.equal(meter([]).rate(1000), 0);
  assert.equal(meter([[0, 5]]).rate(1000), 0);
});

test("steady growth is its own rate", () => {
  const samples = Array.from(
    { length: 40 },
    (_, i) => /** @type {[number, number]} */ ([i * 250, i * 1000]),
  );
  assert.equal(meter(samples).rate(39 * 250), 4000);
});

test("the first burst is spread over a second at least", () => {
  assert.equal(
    meter([
      [0, 0],
      [10, 8000],
    ]).rate(10),
    8000,
  );
});

test("a rate falls to zero when nothing more comes", () => {
  const idle = meter([
    [0, 0],
    [1000, 6000],
  ]);
  assert.equal(idle.rate(2000), 3000);
  assert.equal(idle.rate(3900), 2000);
  assert.equal(idle.rate(4000), 0);
  assert.equal(idle.rate(60_000), 0);
});

test("a burst after a long silence counts over the window, not over the silence", () => {
  assert.equal(
    meter([
      [0, 0],
      [600_000, 9000],
    ]).rate(600_000),
    3000,
  );
});

test("samples do not pile up", () => {
  const long = new RateMeter();
  for (let i = 0; i < 10_000; i += 1) long.add(i * 250, i);
  assert.ok(long.samples.length < 20);
});
