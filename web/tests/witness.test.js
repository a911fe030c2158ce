import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { Witness } from "../nbd/witness.js";
import { pattern } from "./lib/fakes.js";

const KIB = 1024;
let now = 0;

beforeEach(() => {
  mock.restoreAll();
  mock.method(performance, "now", () => now);
});

/** @param {number} size */
function watched(size) {
  const content = pattern(0, size);
  let reads = 0;
  const witness = new Witness(
    async (offset, length) => {
      reads += 1;
      return content.slice(offset, offset + length);
    },
    { name: "disk.iso", size, modified: null },
  );
  return { witness, content, reads: () => reads };
}

test("a file whose beginning or end becomes another can't be read any more", async () => {
  for (const place of [0, 64 * KIB - 1, 936 * KIB, 1000 * KIB - 1]) {
    const { witness, content } = watched(1000 * KIB);
    await witness.read(500 * KIB, 10);
    content[place] += 1;
    now += 1001;
    const error = { code: "image-changed", message: /"disk.iso" changed on disk/ };
    await assert.rejects(witness.read(500 * KIB, 10), error);
    content[place] -= 1;
    await assert.rejects(witness.read(500 * KIB, 10), error, "nobody knows what else changed");
  }
});

test("a file that stays as it is costs two reads a second, while it is read", async () => {
  const { witness, content, reads } = watched(1000 * KIB);
  for (let count = 0; count < 100; count++) {
    assert.deepEqual(await witness.read(count, 10), content.subarray(count, count + 10));
    now += 50;
  }
  assert.ok(reads() <= 100 + 2 * 6, `${reads()} reads`);
});

test("an image smaller than a sample is watched too", async () => {
  const { witness, content } = watched(5);
  assert.deepEqual(await witness.read(1, 2), pattern(1, 2));
  content[4] = 99;
  now += 1001;
  await assert.rejects(witness.read(1, 2), { code: "image-changed" });
});

test("a first read that fails does not stand for the following ones", async () => {
  let broken = true;
  const read = async (/** @type {number} */ offset, /** @type {number} */ length) => {
    if (broken) throw new Error("not yet");
    return pattern(offset, length);
  };
  const witness = new Witness(read, { name: "x", size: 100, modified: null });
  await assert.rejects(witness.read(0, 1), /not yet/);
  broken = false;
  assert.deepEqual(await witness.read(3, 1), pattern(3, 1));
});
