import assert from "node:assert/strict";
import { test } from "node:test";
import { BlobReader } from "../nbd/blob.js";
import { pattern } from "./lib/fakes.js";

const MIB = 1024 * 1024;
const content = pattern(0, 8 * MIB + 1000);

/**
 * A Blob that tells how it is read.
 *
 * @param {{streams?: (blob: Blob) => ReadableStream}} [choices]
 */
function watchedBlob({ streams = (blob) => blob.stream() } = {}) {
  const seen = { slices: 0, sliced: 0, streams: 0 };
  const whole = new Blob([content]);
  /** @param {Blob} blob */
  const watched = (blob) => ({
    arrayBuffer: async () => {
      seen.slices += 1;
      seen.sliced += blob.size;
      return blob.arrayBuffer();
    },
    stream: () => {
      seen.streams += 1;
      return streams(blob);
    },
  });
  const blob = {
    /** @param {number} start @param {number} [end] */
    slice: (start, end) => watched(whole.slice(start, end)),
  };
  return { reader: new BlobReader(/** @type {any} */ (blob)), seen };
}

/** @param {BlobReader} reader @param {number} offset @param {number} length */
async function check(reader, offset, length) {
  const bytes = new Uint8Array(await reader.read(offset, length));
  assert.ok(Buffer.compare(bytes, content.subarray(offset, offset + length)) === 0, `${offset}`);
}

test("long reads in a row come from one stream, from the second on", async () => {
  const { reader, seen } = watchedBlob();
  for (let offset = 0; offset < 8 * MIB; offset += MIB) await check(reader, offset, MIB);
  assert.equal(seen.streams, 1);
  assert.equal(seen.sliced, MIB + 7, "the first, and a look at the file's time for each other");
});

test("reads that are asked for at once come from the stream in their order", async () => {
  const { reader, seen } = watchedBlob();
  const offsets = [0, 1, 2, 3, 4, 5, 6, 7];
  await Promise.all(offsets.map((index) => check(reader, index * MIB, MIB)));
  assert.equal(seen.streams, 1);
});

test("short and scattered reads are slices", async () => {
  const { reader, seen } = watchedBlob();
  for (const offset of [6, 0, 4, 2]) await check(reader, offset * MIB, MIB);
  for (const offset of [0, 4096, 8192]) await check(reader, offset, 4096);
  assert.equal(seen.streams, 0);
});

test("a few readers in a row each have a stream", async () => {
  const { reader, seen } = watchedBlob();
  for (let step = 0; step < 4; step++) {
    for (const start of [0, 4]) await check(reader, (start + step) * MIB, MIB);
  }
  assert.equal(seen.streams, 2);
});

test("a stream that was forgotten is closed", async () => {
  let cancelled = 0;
  const streams = (/** @type {Blob} */ blob) =>
    new ReadableStream({
      type: "bytes",
      async pull(controller) {
        controller.enqueue(new Uint8Array(await blob.slice(0, MIB).arrayBuffer()));
      },
      cancel: () => {
        cancelled += 1;
      },
    });
  const { reader } = watchedBlob({ streams });
  await reader.read(0, MIB);
  await reader.read(MIB, MIB);
  for (const offset of [7, 5, 3, 0]) await reader.read(offset * MIB, MIB);
  assert.equal(cancelled, 1);
});

test("where a stream does not fill buffers of ours, slices are read", async () => {
  const streams = () => new ReadableStream({ pull: () => {} });
  const { reader, seen } = watchedBlob({ streams });
  for (let offset = 0; offset < 8 * MIB; offset += MIB) await check(reader, offset, MIB);
  assert.equal(seen.streams, 1, "tried once");
});

test("a stream that ends too early, or fails, is no error of the file", async () => {
  const ends = (/** @type {Blob} */ blob) => blob.slice(0, 1000).stream();
  const fails = () =>
    new ReadableStream({ type: "bytes", pull: () => Promise.reject(new Error("no")) });
  for (const streams of [ends, fails]) {
    const { reader } = watchedBlob({ streams });
    for (let offset = 0; offset < 4 * MIB; offset += MIB) await check(reader, offset, MIB);
  }
});

test("the end of a Blob is the end of what is read", async () => {
  const { reader } = watchedBlob();
  for (let offset = 0; offset < 6 * MIB; offset += 2 * MIB) await check(reader, offset, 2 * MIB);
  await check(reader, 6 * MIB, 2 * MIB + 1000);
  assert.equal((await reader.read(8 * MIB, MIB)).byteLength, 1000);
});

/**
 * A file of which WebKit fills what is missing up with zeros.
 *
 * @param {{lastModified: number, missing: boolean}} file
 */
function webkitFile({ lastModified, missing }) {
  const whole = new Blob([content]);
  return {
    lastModified,
    size: content.length,
    /** @param {number} start @param {number} end */
    slice: (start, end) => ({
      arrayBuffer: async () =>
        missing ? new ArrayBuffer(end - start) : whole.slice(start, end).arrayBuffer(),
      stream: () => (missing ? new Blob([]) : whole.slice(start, end)).stream(),
    }),
  };
}

test("a file that has lost its end is an error, also where the browser gives zeros for it", async () => {
  const file = webkitFile({ lastModified: 1_000_100, missing: true });
  const reader = new BlobReader(/** @type {any} */ (file));
  for (let time = 0; time < 2; time += 1) {
    await assert.rejects(reader.read(0, 4096), { name: "NotReadableError" });
  }
});

test("a file is read once the second of its last change is over", async (t) => {
  t.mock.timers.enable({ apis: ["Date", "setTimeout"], now: 1_000_400 });
  const file = webkitFile({ lastModified: 1_000_100, missing: true });
  const reader = new BlobReader(/** @type {any} */ (file));
  const read = reader.read(0, 4096);
  t.mock.timers.tick(599);
  Object.assign(file, webkitFile({ lastModified: 1_000_100, missing: false }));
  t.mock.timers.tick(1);
  assert.deepEqual(new Uint8Array(await read), content.slice(0, 4096));
});

test("a file from a clock that is ahead is not waited for", async (t) => {
  t.mock.timers.enable({ apis: ["Date", "setTimeout"], now: 1_000_400 });
  const file = webkitFile({ lastModified: 9_000_000, missing: false });
  const reader = new BlobReader(/** @type {any} */ (file));
  assert.equal((await reader.read(0, 4096)).byteLength, 4096);
});
