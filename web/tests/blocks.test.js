import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockCache } from "../nbd/blocks.js";
import { pattern, randomFrom } from "./lib/fakes.js";

const KIB = 1024;
const BLOCK = 64 * KIB;

/** @param {number} size @param {(offset: number, length: number) => void} [before] each read */
function counted(size, before = () => {}) {
  /** @type {[number, number][]} */
  const reads = [];
  /** @param {number} offset @param {number} length */
  const read = async (offset, length) => {
    before(offset, length);
    reads.push([offset, length]);
    return pattern(offset, length);
  };
  return { cache: new BlockCache({ size, read }), reads };
}

test("short reads with neighbours are one read of their block", async () => {
  const { cache, reads } = counted(10 * BLOCK);
  for (let offset = BLOCK; offset < 2 * BLOCK; offset += 4 * KIB) {
    assert.deepEqual(await cache.read(offset, 4 * KIB), pattern(offset, 4 * KIB));
  }
  assert.deepEqual(reads, [[BLOCK, BLOCK]]);
});

test("those who ask for a block that is being read wait for the same read", async () => {
  const { cache, reads } = counted(BLOCK);
  await Promise.all([cache.read(0, 512), cache.read(4096, 512), cache.read(BLOCK - 1, 1)]);
  assert.equal(reads.length, 1);
});

test("reads all over an image are soon read as they are", async () => {
  const { cache, reads } = counted(2 ** 40);
  const random = randomFrom(7);
  for (let count = 0; count < 1000; count++) await cache.read(random(2 ** 28) * 4 * KIB, 4 * KIB);
  assert.equal(reads.length, 1000);
  assert.ok(reads.filter(([, length]) => length > 4 * KIB).length <= 33);
});

test("after reads all over an image, neighbours are noticed again", async () => {
  const { cache, reads } = counted(2 ** 40);
  for (let count = 0; count < 1000; count++) await cache.read(count * 10 * BLOCK, 4 * KIB);
  const before = reads.length;
  for (let block = 1; block <= 20; block++) {
    for (let at = 0; at < BLOCK; at += 4 * KIB)
      await cache.read(10 ** 9 * BLOCK + block * BLOCK + at, 4 * KIB);
  }
  assert.ok(reads.length - before < 20 * 4, `${reads.length - before} reads of 20 blocks`);
});

test("long reads, and those across a border, are read as they are", async () => {
  const { cache, reads } = counted(10 * BLOCK);
  for (const [offset, length] of [
    [0, BLOCK],
    [100, BLOCK],
    [BLOCK - 1, 2],
    [0, 3 * BLOCK],
  ]) {
    assert.equal((await cache.read(offset, length)).length, length);
    assert.deepEqual(reads.at(-1), [offset, length]);
  }
});

test("nothing is read beyond the image's end, and little is kept", async () => {
  const { cache, reads } = counted(100 * BLOCK + 1000);
  for (let block = 0; block <= 100; block++) {
    for (const at of [0, 500]) await cache.read(block * BLOCK + at, 500);
  }
  assert.deepEqual(reads.at(-1), [100 * BLOCK, 1000]);
  const before = reads.length;
  await cache.read(0, 500);
  assert.equal(reads.length, before + 1, "the first block was given up");
});

test("one bad spot fails the reads that touch it, not its block", async () => {
  const { cache } = counted(BLOCK, (offset, length) => {
    if (offset <= 5000 && 5000 < offset + length) throw new Error("bad spot");
  });
  await assert.rejects(cache.read(5000, 10), /bad spot/);
  assert.deepEqual(await cache.read(9000, 10), pattern(9000, 10));
});
