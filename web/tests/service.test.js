import assert from "node:assert/strict";
import { test } from "node:test";
import { WindowCache } from "../nbd/cache.js";
import { Command, CommandFlag, Errno, Option, ProtocolError } from "../nbd/protocol.js";
import { Service } from "../nbd/service.js";
import {
  bytes,
  CLIENT_FLAGS,
  contextData,
  errorOf,
  goData,
  option,
  Reader,
  request,
  text,
  u16,
  u32,
  u64,
} from "./lib/client.js";
import { FakeTransport, pattern, patternImage, until } from "./lib/fakes.js";

const SIZE = 1_000_001;
const DONE = 1;
const ERROR_CHUNK = 0x8001;

/** @typedef {import("../nbd/service.js").Reader} ImageReader */

/** @param {{size?: number, reader?: ImageReader}} [choices] */
function serve({ size = SIZE, reader = new WindowCache(patternImage(size)) } = {}) {
  const transport = new FakeTransport();
  const seen = {
    begun: 0,
    answered: 0,
    bytes: 0,
    /** @type {(ProtocolError | null)[]} */
    ends: [],
  };
  const exported = { name: "a.img", description: "", size };
  const service = new Service(exported, reader, transport, {
    begun: () => {
      seen.begun += 1;
    },
    answered: (count) => {
      seen.answered += 1;
      seen.bytes += count;
    },
    ended: (error) => seen.ends.push(error),
  });
  service.start();
  return { service, transport, seen };
}

/** @param {Parameters<typeof serve>[0]} [choices] */
function simple(choices) {
  const served = serve(choices);
  served.service.receive(bytes(CLIENT_FLAGS, option(Option.GO, goData(""))));
  served.transport.takeBytes();
  return served;
}

/** @param {Parameters<typeof serve>[0]} [choices] */
function structured(choices) {
  const served = serve(choices);
  served.service.receive(
    bytes(
      CLIENT_FLAGS,
      option(Option.STRUCTURED_REPLY),
      option(Option.SET_META_CONTEXT, contextData("", ["base:allocation"])),
      option(Option.GO, goData("")),
    ),
  );
  served.transport.takeBytes();
  return served;
}

/**
 * @param {ReturnType<typeof serve>} served
 * @param {Uint8Array} bytes
 */
async function ask({ service, transport, seen }, bytes) {
  const expected = seen.answered + 1;
  service.receive(bytes);
  await until(() => seen.answered === expected);
  return new Reader(transport.takeBytes());
}

test("READ with a simple reply, byte for byte: a short one is one message", async () => {
  const { service, transport, seen } = simple();
  service.receive(bytes("25609513 0000 0000 0102030405060708 00000000000f4240 00000001"));
  await until(() => seen.answered === 1);
  assert.deepEqual(transport.messages, [
    bytes("67446698 00000000 0102030405060708", pattern(1_000_000, 1)),
  ]);
});

test("READ with a structured reply, byte for byte: a short one is one message", async () => {
  const { service, transport, seen } = structured();
  service.receive(bytes("25609513 0000 0000 ffffffffffffffff 0000000000000100 00000003"));
  await until(() => seen.answered === 1);
  assert.deepEqual(transport.messages, [
    bytes("668e33ef 0001 0001 ffffffffffffffff 0000000b 0000000000000100", pattern(256, 3)),
  ]);
});

test("READ of much is not copied to stand behind its header", async () => {
  const { service, transport, seen } = simple();
  service.receive(bytes("25609513 0000 0000 0102030405060708 0000000000000000 00010000"));
  await until(() => seen.answered === 1);
  assert.deepEqual(transport.messages, [
    bytes("67446698 00000000 0102030405060708"),
    pattern(0, 65536),
  ]);
});

test("READ that may not be fragmented comes in one chunk", async () => {
  const flags = CommandFlag.DF;
  const served = structured({ size: 40_000_000 });
  const length = 9_000_000;
  const reply = await ask(served, request({ type: Command.READ, flags, offset: 5, length }));
  const { flags: replyFlags, data } = reply.chunk();
  assert.equal(replyFlags, DONE);
  assert.deepEqual(data.subarray(8), pattern(5, length));
  assert.equal(reply.left, 0);
});

test("READ of nothing succeeds", async () => {
  const question = request({ type: Command.READ, offset: SIZE });
  const chunk = (await ask(structured(), question)).chunk();
  assert.deepEqual([chunk.type, chunk.flags, chunk.data.length], [0, DONE, 0]);
  const reply = await ask(simple(), question);
  assert.equal(reply.simpleReply().errno, 0);
  assert.equal(reply.left, 0);
});

test("FLUSH and CACHE succeed", async () => {
  for (const question of [
    request({ type: Command.FLUSH }),
    request({ type: Command.CACHE, offset: 1, length: 1000 }),
  ]) {
    assert.equal((await ask(simple(), question)).simpleReply().errno, 0);
    assert.equal((await ask(structured(), question)).chunk().type, 0);
  }
});

test("BLOCK_STATUS says that all of it is data", async () => {
  for (const flags of [0, CommandFlag.REQ_ONE]) {
    const question = request({ type: Command.BLOCK_STATUS, flags, offset: 7, length: SIZE - 7 });
    const chunk = (await ask(structured(), question)).chunk();
    assert.deepEqual([chunk.type, chunk.flags], [5, DONE]);
    assert.deepEqual(chunk.data, bytes(u32(1), u32(SIZE - 7), u32(0)));
  }
});

test("what may not be is refused with the right error", async () => {
  const { READ, WRITE, TRIM, CACHE, FLUSH, WRITE_ZEROES, BLOCK_STATUS } = Command;
  const { EPERM, EINVAL, EOVERFLOW } = Errno;
  /** @type {[string, Parameters<typeof request>[0], number, number][]} simple, structured */
  const cases = [
    ["write", { type: WRITE }, EPERM, EPERM],
    ["write with FUA", { type: WRITE, flags: 1 }, EPERM, EPERM],
    ["write past the end", { type: WRITE, offset: 2n ** 63n }, EPERM, EPERM],
    ["trim", { type: TRIM, length: 512 }, EPERM, EPERM],
    ["write zeroes", { type: WRITE_ZEROES, length: 512, flags: 2 }, EPERM, EPERM],
    ["one byte past the end", { type: READ, offset: SIZE, length: 1 }, EINVAL, EINVAL],
    ["across the end", { type: READ, offset: SIZE - 1, length: 2 }, EINVAL, EINVAL],
    ["beyond 2^53", { type: READ, offset: 2n ** 53n + 1n, length: 1 }, EINVAL, EINVAL],
    ["beyond 2^63", { type: READ, offset: 2n ** 64n - 1n, length: 1 }, EINVAL, EINVAL],
    ["sum of 2^64", { type: READ, offset: 2n ** 64n - 512n, length: 512 }, EINVAL, EINVAL],
    ["cache past the end", { type: CACHE, offset: SIZE, length: 1 }, EINVAL, EINVAL],
    ["status past the end", { type: BLOCK_STATUS, offset: SIZE, length: 1 }, EINVAL, EINVAL],
    ["status of nothing", { type: BLOCK_STATUS, length: 0 }, EINVAL, EINVAL],
    ["flush with a range", { type: FLUSH, length: 1 }, EINVAL, EINVAL],
    ["FUA, which is not offered", { type: READ, length: 1, flags: 1 }, EINVAL, EINVAL],
    ["unknown flag", { type: READ, length: 1, flags: 0x8000 }, EINVAL, EINVAL],
    ["REQ_ONE on a read", { type: READ, length: 1, flags: 8 }, EINVAL, EINVAL],
    ["DF on a cache", { type: CACHE, length: 1, flags: 4 }, EINVAL, EINVAL],
    ["flush with flags", { type: FLUSH, flags: 4 }, EINVAL, EINVAL],
    ["RESIZE", { type: 8 }, EINVAL, EINVAL],
    ["unknown command", { type: 0xffff, length: 9 }, EINVAL, EINVAL],
  ];
  for (const [name, fields, simpleErrno, structuredErrno] of cases) {
    const cookie = 77n;
    const first = (await ask(simple(), request({ ...fields, cookie }))).simpleReply();
    assert.deepEqual([first.errno, first.cookie], [simpleErrno, cookie], name);
    const second = (await ask(structured(), request({ ...fields, cookie }))).chunk();
    assert.deepEqual([second.type, second.cookie, second.flags], [ERROR_CHUNK, cookie, DONE], name);
    const { errno, message } = errorOf(second.data);
    assert.equal(errno, structuredErrno, name);
    assert.ok(message.length > 0, name);
  }
  const huge = request({ type: READ, length: 32 * 1024 * 1024 + 1 });
  const size = 2 ** 40;
  assert.equal((await ask(simple({ size }), huge)).simpleReply().errno, EINVAL);
  assert.equal(errorOf((await ask(structured({ size }), huge)).chunk().data).errno, EOVERFLOW);
});

test("DF without structured replies and BLOCK_STATUS without its context are invalid", async () => {
  const withDf = request({ type: Command.READ, length: 1, flags: CommandFlag.DF });
  assert.equal((await ask(simple(), withDf)).simpleReply().errno, Errno.EINVAL);
  const status = request({ type: Command.BLOCK_STATUS, length: 1 });
  assert.equal((await ask(simple(), status)).simpleReply().errno, Errno.EINVAL);
});

test("a refused WRITE is answered after its payload, which is skipped as it comes", async () => {
  const served = simple();
  const length = 0xffffffff;
  served.service.receive(request({ type: Command.WRITE, length }));
  // Looks like a request, and is not one.
  const piece = new Uint8Array(16 * 1024 * 1024).fill(0);
  piece.set(request({ type: Command.READ, length: 1 }));
  let left = length;
  while (left > piece.length) {
    served.service.receive(piece);
    left -= piece.length;
  }
  assert.equal(served.seen.answered, 0);
  const reply = await ask(served, piece.subarray(0, left));
  assert.equal(reply.simpleReply().errno, Errno.EPERM);
  const next = await ask(served, request({ type: Command.FLUSH, cookie: 5 }));
  assert.equal(next.simpleReply().cookie, 5n);
});

test("images of any size a number can hold: offsets above 4 GiB, above 2^32 blocks, the last byte", async () => {
  const size = Number.MAX_SAFE_INTEGER;
  const reader = {
    /**
     * @param {number} offset
     * @param {number} length
     */
    read: async (offset, length) => [pattern(offset, length)],
    prefetch: () => {},
  };
  const served = structured({ size, reader });
  for (const offset of [2 ** 32 - 1, 2 ** 32, 2 ** 41 + 512, 2 ** 44, size - 4]) {
    const chunk = (await ask(served, request({ type: Command.READ, offset, length: 4 }))).chunk();
    assert.deepEqual(chunk.data, bytes(u64(offset), pattern(offset, 4)));
  }
  const past = request({ type: Command.READ, offset: size - 3, length: 4 });
  assert.equal((await ask(served, past)).chunk().type, ERROR_CHUNK);
  const { transport } = serve({ size });
  transport.takeBytes();
  const plain = serve({ size });
  plain.transport.takeBytes();
  plain.service.receive(bytes(CLIENT_FLAGS, option(Option.EXPORT_NAME)));
  assert.equal(new Reader(plain.transport.takeBytes()).u64(), BigInt(size));
});

test("a read that fails is EIO with words, and the next one is served", async () => {
  const sound = patternImage(SIZE);
  let broken = true;
  const image = {
    size: SIZE,
    /**
     * @param {number} offset
     * @param {number} length
     */
    read: (offset, length) =>
      broken ? Promise.reject(new Error("the file changed")) : sound.read(offset, length),
  };
  for (const begin of [simple, structured]) {
    broken = true;
    const served = begin({ reader: new WindowCache(image) });
    const failed = await ask(served, request({ type: Command.READ, length: 512 }));
    if (begin === simple) {
      assert.equal(failed.simpleReply().errno, Errno.EIO);
    } else {
      assert.deepEqual(errorOf(failed.chunk().data), {
        errno: Errno.EIO,
        message: "the file changed",
      });
    }
    assert.equal(failed.left, 0);
    broken = false;
    assert.ok((await ask(served, request({ type: Command.READ, length: 512 }))).left > 512);
    assert.equal(served.seen.bytes, 512);
  }
});

/** A reader whose reads end when the test says so. */
function manualReader() {
  /** @type {{offset: number, length: number, finish: () => void}[]} */
  const reads = [];
  return {
    reads,
    /**
     * @param {number} offset
     * @param {number} length
     * @returns {Promise<Uint8Array[]>}
     */
    read: (offset, length) =>
      new Promise((resolve) => {
        const finish = () => resolve([pattern(offset, Math.min(length, 8))]);
        reads.push({ offset, length, finish });
      }),
    prefetch: () => {},
  };
}

test("DISC is obeyed once all that was asked for is answered", async () => {
  const reader = manualReader();
  const { service, seen } = simple({ reader });
  service.receive(
    bytes(request({ type: Command.READ, length: 8 }), request({ type: Command.DISC })),
  );
  service.receive(request({ type: Command.FLUSH }));
  assert.deepEqual(seen.ends, []);
  reader.reads[0].finish();
  await until(() => seen.ends.length > 0);
  assert.deepEqual(seen.ends, [null]);
  assert.equal(seen.answered, 1, "what follows DISC is not looked at");
});

test("ABORT ends in order", () => {
  const { service, seen } = serve();
  service.receive(bytes(CLIENT_FLAGS, option(Option.ABORT)));
  assert.deepEqual(seen.ends, [null]);
});

test("a request without its magic number ends with the rule that was broken", () => {
  const { service, transport, seen } = simple();
  service.receive(bytes("deadbeef", new Uint8Array(24)));
  assert.ok(seen.ends[0] instanceof ProtocolError);
  assert.match(seen.ends[0].message, /0xdeadbeef/);
  service.receive(request({ type: Command.FLUSH }));
  assert.deepEqual(transport.messages, []);
  assert.equal(seen.ends.length, 1);
});

test("replies go out as reads end, in any order", async () => {
  const reader = manualReader();
  const { service, transport, seen } = simple({ reader });
  for (const cookie of [1, 2, 3]) {
    service.receive(request({ type: Command.READ, length: 8, cookie }));
  }
  for (const index of [2, 0, 1]) {
    reader.reads[index].finish();
    await until(() => transport.messages.length > 0);
    assert.equal(new Reader(transport.takeBytes()).simpleReply().cookie, BigInt(index + 1));
  }
  assert.equal(seen.bytes, 24);
});

test("only so many reads run at once, by number and by bytes, and one always may", async () => {
  const size = 2 ** 40;
  const many = manualReader();
  const first = simple({ reader: many, size });
  for (let count = 0; count < 100; count++) {
    first.service.receive(request({ type: Command.READ, length: 8 }));
  }
  assert.equal(many.reads.length, 16);
  many.reads[0].finish();
  await until(() => many.reads.length === 17);

  const large = manualReader();
  const second = simple({ reader: large, size });
  for (let count = 0; count < 4; count++) {
    second.service.receive(request({ type: Command.READ, length: 32 * 1024 * 1024 }));
  }
  assert.equal(large.reads.length, 1);
});

test("reads wait while the client does not take what was sent", async () => {
  const reader = manualReader();
  const { service, transport } = simple({ reader });
  transport.queued = 100 * 1024 * 1024;
  service.receive(request({ type: Command.READ, length: 8 }));
  assert.equal(reader.reads.length, 0);
  transport.drain();
  assert.equal(reader.reads.length, 1);
});

test("who sends requests without end and takes no answer is left", () => {
  const { service, seen } = simple({ reader: manualReader() });
  const thousand = bytes(...Array(1000).fill(request({ type: Command.READ, length: 8 })));
  for (let count = 0; count < 70; count++) {
    service.receive(thousand);
  }
  assert.match(String(seen.ends[0]), /65536 requests/);
});

test("once stopped, nothing more is said", async () => {
  const reader = manualReader();
  const { service, transport, seen } = simple({ reader });
  service.receive(request({ type: Command.READ, length: 8 }));
  service.stop();
  reader.reads[0].finish();
  service.receive(request({ type: Command.FLUSH }));
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([transport.messages, seen.ends, seen.answered], [[], [], 0]);
});

test("an error's words that are too long are cut", async () => {
  const reader = {
    read: () => Promise.reject(new Error("x".repeat(10_000))),
    prefetch: () => {},
  };
  const reply = await ask(structured({ reader }), request({ type: Command.READ, length: 1 }));
  assert.equal(errorOf(reply.chunk().data).message.length, 4096);
});

test("the greeting comes first, and the option that enters transmission is answered before reads", async () => {
  const { service, transport, seen } = serve();
  service.receive(
    bytes(
      CLIENT_FLAGS,
      option(Option.GO, goData("a.img")),
      request({ type: Command.READ, length: 2 }),
    ),
  );
  await until(() => seen.answered === 1);
  const reader = new Reader(transport.takeBytes());
  assert.equal(reader.greeting().flags, 3);
  assert.deepEqual(reader.optionReply().data, bytes(u16(0), u64(SIZE), u16(0x407)));
  assert.equal(reader.optionReply().type, 1);
  assert.equal(reader.simpleReply().errno, 0);
  assert.deepEqual(reader.take(2), pattern(0, 2));
  assert.equal(text("a.img").length, 5);
});
