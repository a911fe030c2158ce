import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteQueue } from "../nbd/bytes.js";
import { pattern } from "./lib/fakes.js";

/** @param {Uint8Array[]} pieces */
function queueOf(...pieces) {
  const queue = new ByteQueue();
  for (const piece of pieces) {
    queue.push(piece);
  }
  return queue;
}

test("gives nothing until all that is asked for has arrived", () => {
  const queue = queueOf(pattern(0, 3));
  assert.equal(queue.take(4), null);
  assert.equal(queue.length, 3);
  queue.push(pattern(3, 1));
  assert.deepEqual(queue.take(4), pattern(0, 4));
  assert.equal(queue.length, 0);
});

test("gives the same bytes however they were cut", () => {
  const all = pattern(0, 12);
  for (let first = 0; first <= 12; first++) {
    for (let second = first; second <= 12; second++) {
      const queue = queueOf(
        all.subarray(0, first),
        all.subarray(first, second),
        all.subarray(second),
      );
      assert.deepEqual(queue.take(5), all.subarray(0, 5));
      assert.equal(queue.discard(2), 2);
      assert.deepEqual(queue.take(5), all.subarray(7));
      assert.equal(queue.take(1), null);
    }
  }
});

test("does not copy what lies in one piece", () => {
  const piece = pattern(0, 10);
  const queue = queueOf(piece);
  assert.equal(queue.take(4)?.buffer, piece.buffer);
  assert.equal(queue.take(6)?.buffer, piece.buffer);
});

test("takes nothing from nothing", () => {
  assert.deepEqual(new ByteQueue().take(0), new Uint8Array(0));
});

test("discards no more than there is", () => {
  const queue = queueOf(pattern(0, 3), pattern(3, 3));
  assert.equal(queue.discard(100), 6);
  assert.equal(queue.length, 0);
});

test("forgets pieces that are used up", () => {
  const queue = new ByteQueue();
  for (let round = 0; round < 1000; round++) {
    queue.push(pattern(round, 1));
    queue.push(pattern(round + 1, 1));
    assert.deepEqual(queue.take(1), pattern(Math.floor(round / 2) + (round % 2), 1));
  }
  assert.equal(queue.length, 1000);
});
