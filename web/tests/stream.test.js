// The client's stream cut in every way, and streams that no client should send.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Command, Info, Option, ProtocolError } from "../nbd/protocol.js";
import { Service } from "../nbd/service.js";
import {
  bytes,
  CLIENT_FLAGS,
  contextData,
  goData,
  option,
  request,
  text,
  u32,
} from "./lib/client.js";
import { FakeTransport, pattern, randomFrom, until } from "./lib/fakes.js";

const SIZE = 10_000;

/** A conversation that uses every option and command. */
const CONVERSATION = bytes(
  CLIENT_FLAGS,
  option(Option.LIST),
  option(Option.STARTTLS),
  option(Option.EXTENDED_HEADERS),
  option(Option.STRUCTURED_REPLY),
  option(Option.LIST_META_CONTEXT, contextData("a.img", [])),
  option(Option.SET_META_CONTEXT, contextData("a.img", ["base:allocation", "x-y:z"])),
  option(Option.INFO, goData("other")),
  option(Option.INFO, goData("", [Info.NAME])),
  option(Option.GO, goData("a.img", [Info.BLOCK_SIZE, Info.DESCRIPTION])),
  request({ type: Command.READ, offset: 100, length: 50, cookie: 1 }),
  request({ type: Command.WRITE, offset: 5, length: 40, cookie: 2 }),
  text("forty bytes of payload which are skipped"),
  request({ type: Command.BLOCK_STATUS, length: SIZE, cookie: 3 }),
  request({ type: Command.CACHE, length: SIZE, cookie: 4 }),
  request({ type: Command.TRIM, length: 10, cookie: 5 }),
  request({ type: Command.WRITE_ZEROES, length: 10, cookie: 6 }),
  request({ type: Command.FLUSH, cookie: 7 }),
  request({ type: Command.READ, offset: SIZE, length: 1, cookie: 8 }),
  request({ type: 99, cookie: 9 }),
  request({ type: Command.DISC }),
);

/** Answers at once and in order, so that two conversations can be compared byte by byte. */
const READER = {
  /**
   * @param {number} offset
   * @param {number} length
   */
  read: async (offset, length) => [pattern(offset, length)],
  prefetch: () => {},
};

/** @param {Uint8Array[]} pieces */
async function converse(pieces) {
  const transport = new FakeTransport();
  /** @type {(ProtocolError | null)[]} */
  const ends = [];
  const service = new Service(
    { name: "a.img", description: "an image", size: SIZE },
    READER,
    transport,
    {
      begun: () => {},
      answered: () => {},
      ended: (error) => ends.push(error),
    },
  );
  service.start();
  for (const piece of pieces) {
    service.receive(piece);
  }
  await new Promise((resolve) => setImmediate(resolve));
  return { said: transport.takeBytes(), ends, service };
}

/**
 * Reads are answered later than what needs none; sorted by cookie, both orders are one.
 *
 * @param {Uint8Array} said
 */
function normalised(said) {
  return Buffer.from(said).toString("hex").split("668e33ef").sort().join("\n");
}

const whole = await converse([CONVERSATION]);

test("the whole conversation ends in order", () => {
  assert.deepEqual(whole.ends, [null]);
  assert.equal(normalised(whole.said).split("\n").length, 1 + 9, "nine structured replies");
});

test("cut in two anywhere, it is the same conversation", async () => {
  for (let cut = 1; cut < CONVERSATION.length; cut++) {
    const { said, ends } = await converse([
      CONVERSATION.subarray(0, cut),
      CONVERSATION.subarray(cut),
    ]);
    assert.deepEqual(ends, [null], `cut at ${cut}`);
    assert.equal(normalised(said), normalised(whole.said), `cut at ${cut}`);
  }
});

test("byte by byte, and in pieces of every small size, it is the same conversation", async () => {
  for (let size = 1; size <= 64; size++) {
    const pieces = [];
    for (let at = 0; at < CONVERSATION.length; at += size) {
      pieces.push(CONVERSATION.subarray(at, at + size));
    }
    const { said, ends } = await converse(pieces);
    assert.deepEqual(ends, [null], `pieces of ${size}`);
    assert.equal(normalised(said), normalised(whole.said), `pieces of ${size}`);
  }
});

test("broken off anywhere, it waits for more and says nothing wrong", async () => {
  for (let length = 0; length < CONVERSATION.length; length++) {
    const { ends } = await converse([CONVERSATION.subarray(0, length)]);
    assert.deepEqual(ends, [], `after ${length} bytes`);
  }
});

test("with bytes changed at random it is served, refused or ended, and never throws", async () => {
  const random = randomFrom(20261122);
  for (let round = 0; round < 3000; round++) {
    const broken = CONVERSATION.slice();
    for (let count = 1 + random(4); count > 0; count--) {
      broken[random(broken.length)] = random(256);
    }
    const { ends } = await converse([broken]);
    assert.ok(ends.length <= 1);
    assert.ok(ends.every((end) => end === null || end instanceof ProtocolError));
  }
});

test("noise is never taken for a client", async () => {
  const random = randomFrom(7);
  for (let round = 0; round < 300; round++) {
    const noise = Uint8Array.from({ length: 200 }, () => random(256));
    // Flags of a client, so that the noise is taken for options.
    for (const stream of [noise, bytes(u32(3), noise)]) {
      const { ends } = await converse([stream]);
      assert.ok(ends[0] instanceof ProtocolError);
    }
  }
});

test("what arrives after the end is not looked at", async () => {
  const { service, ends } = await converse([CONVERSATION]);
  service.receive(bytes("deadbeef"));
  await until(() => true);
  assert.equal(ends.length, 1);
});
