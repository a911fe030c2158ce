import assert from "node:assert/strict";
import { test } from "node:test";
import { WINDOW, WindowCache } from "../nbd/cache.js";
import { bytes } from "./lib/client.js";
import { pattern, randomFrom } from "./lib/fakes.js";

const KIB = 1024;

/**
 * An image of zeros, but for its length; what counts is how it is read.
 *
 * @param {number} size
 */
function countingImage(size) {
  /** @type {[number, number][]} */
  const reads = [];
  return {
    size,
    reads,
    /**
     * @param {number} offset
     * @param {number} length
     */
    async read(offset, length) {
      reads.push([offset, length]);
      return new Uint8Array(length);
    },
    get bytes() {
      return reads.reduce((sum, [, length]) => sum + length, 0);
    },
  };
}

test("random reads, small and large, read exactly what was asked for", async () => {
  for (const length of [4 * KIB, 128 * KIB, 3 * 1024 * KIB]) {
    const image = countingImage(2 ** 40);
    const cache = new WindowCache(image);
    const random = randomFrom(1);
    for (let count = 0; count < 500; count++) {
      await cache.read(random(2 ** 28) * 4 * KIB, length);
    }
    assert.equal(image.reads.length, 500);
    assert.equal(image.bytes, 500 * length);
  }
});

/** An image whose windows are read once they are let. @param {number} size */
function waitingImage(size) {
  const image = countingImage(size);
  /** @type {(() => void)[]} */
  const waiting = [];
  return {
    size,
    local: true,
    waiting,
    reads: image.reads,
    /** @param {number} offset @param {number} length */
    async read(offset, length) {
      const bytes = await image.read(offset, length);
      if (length === WINDOW) await new Promise((resume) => waiting.push(() => resume(null)));
      return bytes;
    },
    get windows() {
      return image.reads.filter(([, length]) => length === WINDOW);
    },
  };
}

test("of a file, windows around random reads are read, one at a time, until memory is full", async () => {
  const image = waitingImage(2 ** 40);
  const cache = new WindowCache(image, 3);
  let window = 0;
  const readElsewhere = () => {
    window += 2;
    return cache.read(window * WINDOW + 8 * KIB, 4 * KIB);
  };
  for (let count = 0; count < 32; count++) await readElsewhere();
  assert.equal(image.windows.length, 0, "they may have been the only ones");
  for (let round = 1; round <= 3; round++) {
    for (let count = 0; count < 10; count++) await readElsewhere();
    assert.equal(image.windows.length, round);
    for (const resume of image.waiting.splice(0)) resume();
    await new Promise(setImmediate);
  }
  for (let count = 0; count < 100; count++) await readElsewhere();
  assert.equal(image.windows.length, 3);
  assert.equal(image.reads.length, window / 2 + 3, "who reads does not wait for a window");
  for (const [offset] of image.windows) await cache.read(offset + 3 * 1024 * KIB, 4 * KIB);
  assert.equal(image.reads.length, window / 2 + 3, "what lies around is there");
});

test("a bad spot does not keep the memory from being filled", async () => {
  const image = countingImage(2 ** 40);
  const read = async (/** @type {number} */ offset, /** @type {number} */ length) => {
    if (length === WINDOW && image.bytes < 40 * 4 * KIB) throw new Error("bad spot");
    return image.read(offset, length);
  };
  const cache = new WindowCache({ size: image.size, read, local: true }, 3);
  for (let window = 0; window < 200; window += 2) await cache.read(window * WINDOW, 4 * KIB);
  assert.equal(image.reads.filter(([, length]) => length === WINDOW).length, 3);
});

test("a sequential reader is soon served from aligned windows, each read once", async () => {
  const image = countingImage(64 * WINDOW);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < image.size; offset += 128 * KIB) {
    await cache.read(offset, 128 * KIB);
  }
  const windows = image.reads.filter(([, length]) => length === WINDOW);
  assert.equal(windows.length, 64);
  assert.ok(windows.every(([offset]) => offset % WINDOW === 0));
  assert.equal(new Set(windows.map(([offset]) => offset)).size, 64);
  assert.equal(image.reads.length - windows.length, 1, "before it was known to be sequential");
});

test("the next window is read ahead, and only the next", async () => {
  const image = countingImage(64 * WINDOW);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < WINDOW; offset += 128 * KIB) {
    await cache.read(offset, 128 * KIB);
  }
  const furthest = Math.max(...image.reads.map(([offset, length]) => offset + length));
  assert.equal(furthest, 2 * WINDOW);
});

test("nothing is read beyond the image's end", async () => {
  const image = countingImage(WINDOW + 1000);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < image.size; offset += 1000) {
    await cache.read(offset, Math.min(1000, image.size - offset));
  }
  cache.prefetch(WINDOW, 1000);
  for (const [offset, length] of image.reads) {
    assert.ok(offset + length <= image.size);
  }
});

test("requests that overtake each other still make a sequential reader", async () => {
  const image = countingImage(64 * WINDOW);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < 32 * WINDOW; offset += 256 * KIB) {
    await cache.read(offset + 128 * KIB, 128 * KIB);
    await cache.read(offset, 128 * KIB);
  }
  assert.ok(image.bytes <= 34 * WINDOW);
  assert.ok(image.reads.length < 50);
});

test("several sequential readers are told apart", async () => {
  const image = countingImage(256 * WINDOW);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < 8 * WINDOW; offset += 128 * KIB) {
    for (const reader of [0, 64, 128]) {
      await cache.read(reader * WINDOW + offset, 128 * KIB);
    }
  }
  assert.ok(image.reads.length <= 3 * 12);
});

test("windows are kept within bounds", async () => {
  const image = countingImage(64 * WINDOW);
  const cache = new WindowCache(image);
  for (let offset = 0; offset < 64 * WINDOW; offset += WINDOW) {
    await cache.read(offset, WINDOW);
  }
  const before = image.reads.length;
  await cache.read(0, 512);
  assert.deepEqual(image.reads.slice(before), [[0, 512]], "the first window was dropped");
  await cache.read(63 * WINDOW, 512);
  assert.equal(image.reads.length, before + 1, "the last one was kept");
});

test("those who ask for a window that is being read wait for the same read", async () => {
  const image = countingImage(8 * WINDOW);
  const cache = new WindowCache(image);
  cache.prefetch(0, WINDOW);
  await Promise.all([cache.read(0, 512), cache.read(8 * KIB, 512), cache.read(WINDOW - 1, 1)]);
  assert.deepEqual(image.reads, [[0, WINDOW]]);
});

test("prefetch is bounded, however much is hinted at", () => {
  const image = countingImage(2 ** 40);
  new WindowCache(image).prefetch(0, 2 ** 32 - 1);
  assert.ok(image.bytes <= 4 * WINDOW);
});

test("one bad spot fails the reads that touch it, not its window", async () => {
  const bad = 100 * KIB;
  const cache = new WindowCache({
    size: WINDOW,
    read: async (offset, length) => {
      if (offset <= bad && bad < offset + length) {
        throw new Error("bad spot");
      }
      return new Uint8Array(length);
    },
  });
  cache.prefetch(0, WINDOW);
  await assert.rejects(cache.read(bad, 512), /bad spot/);
  const [part] = await cache.read(bad + 512, 512);
  assert.equal(part.length, 512);
});

test("any read gives the image's bytes, whatever was read before", async () => {
  const size = 3 * WINDOW + 12345;
  const content = pattern(0, size);
  const cache = new WindowCache({
    size,
    read: async (offset, length) => content.slice(offset, offset + length),
  });
  const random = randomFrom(99);
  let next = 0;
  for (let count = 0; count < 400; count++) {
    const offset = random(3) === 0 ? random(size) : next;
    const length = Math.min(size - offset, random(4) === 0 ? random(6_000_000) : random(300_000));
    const parts = await cache.read(offset, length);
    assert.ok(Buffer.compare(bytes(...parts), content.subarray(offset, offset + length)) === 0);
    next = offset + length < size ? offset + length : 0;
  }
});
