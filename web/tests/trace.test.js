import assert from "node:assert/strict";
import test from "node:test";
import { Trace } from "../nbd/trace.js";

test("reads in a row are one range, others stay apart, in the image's order", () => {
  const trace = new Trace(1 << 20);
  trace.add(512 * 100, 512);
  trace.add(0, 512);
  trace.add(512, 1024);
  assert.deepEqual(trace.take(), [
    { offset: 0, length: 1536 },
    { offset: 51_200, length: 512 },
  ]);
});

test("what was told once is not told again", () => {
  const trace = new Trace(1 << 20);
  trace.add(0, 4096);
  trace.take();
  assert.deepEqual(trace.take(), []);
});

test("however many reads there are, there are at most 2,048 ranges, and none ends behind the image", () => {
  const size = 5_000_000_001;
  const trace = new Trace(size);
  for (let offset = 0; offset < size; offset += 1_000_000) trace.add(offset, 1);
  trace.add(size - 1, 1);
  const ranges = trace.take();
  assert.ok(ranges.length <= 2048, `${ranges.length}`);
  const last = /** @type {import("../nbd/trace.js").Range} */ (ranges.at(-1));
  assert.equal(last.offset + last.length, size);
});

test("a read of one byte marks what it lies in", () => {
  const trace = new Trace(4096 * 4096);
  trace.add(4096 * 9 + 17, 1);
  assert.deepEqual(trace.take(), [{ offset: 4096 * 9, length: 4096 }]);
});
