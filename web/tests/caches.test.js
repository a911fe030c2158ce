import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { WINDOW } from "../nbd/cache.js";
import { cached } from "../nbd/caches.js";
import { NBDServer } from "../nbd/nbd.js";
import { pattern, until } from "./lib/fakes.js";
import { startMachine } from "./lib/machine.js";

const KIB = 1024;
const MIB = 1024 * KIB;

/** @param {number} [bytes] */
function image(bytes) {
  /** @type {number[]} */
  const lengths = [];
  /** @param {number} offset @param {number} length */
  const read = async (offset, length) => {
    lengths.push(length);
    return pattern(offset, length);
  };
  const reader = cached({ size: 64 * MIB, read }, bytes);
  /** @param {number} length */
  const inARow = async (length) => {
    for (let offset = 0; offset < 8 * MIB; offset += length) await reader.read(offset, length);
  };
  return { reader, lengths, inARow };
}

test("without memory, what is asked for is read and no more", async () => {
  const { lengths, inARow } = image(0);
  await inARow(4 * KIB);
  assert.deepEqual([lengths.length, new Set(lengths)], [2048, new Set([4 * KIB])]);
});

test("little memory is for short reads alone", async () => {
  const { lengths, inARow } = image(8 * MIB);
  await inARow(4 * KIB);
  assert.equal(Math.max(...lengths), 64 * KIB);
});

test("what is kept is no more than was allowed", async () => {
  for (const windows of [2, 5]) {
    const { reader, lengths } = image(windows * WINDOW * (9 / 8));
    const touch = async (/** @type {number} */ window) => {
      await reader.read(window * WINDOW, MIB);
      await reader.read(window * WINDOW + MIB, MIB);
    };
    for (let window = 0; window < 12; window += 2) await touch(window);
    const before = lengths.length;
    // The latest ones, with the window after each that was read ahead.
    for (let window = 11; window > 11 - windows; window -= 1) {
      await reader.read(window * WINDOW + 2 * MIB, 4 * KIB);
    }
    assert.equal(lengths.length, before);
    await reader.read(3 * MIB, 4 * KIB);
    assert.equal(lengths.length, before + 1);
  }
});

test("the option `cache` reaches the reads", async (t) => {
  const machine = await startMachine(t);
  for (const [cache, expected] of /** @type {const} */ ([
    [0, 4 * KIB],
    [undefined, 64 * KIB],
    [Number.NaN, 64 * KIB],
  ])) {
    /** @type {number[]} */
    const lengths = [];
    const read = (/** @type {number} */ offset, /** @type {number} */ length) => {
      lengths.push(length);
      return pattern(offset, length);
    };
    const options = { cache, WebSocket: /** @type {any} */ (WebSocket) };
    const server = new NBDServer(`${machine.url}/nbd/0`, { size: 4 * MIB, read }, options);
    server.start();
    const link = await machine.accept();
    await link.negotiate();
    await link.read(MIB, 4 * KIB);
    assert.deepEqual(lengths, [expected]);
    server.stop();
    await until(() => server.state.phase === "ended");
  }
});
