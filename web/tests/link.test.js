// An engine with a WebSocket whose other end is the test.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { Engine } from "../nbd/engine.js";
import { openImage } from "../nbd/image.js";
import { Command, Option } from "../nbd/protocol.js";
import { bytes, CLIENT_FLAGS, goData, option, Reader, request } from "./lib/client.js";
import { FakeWebSocket, pattern, patternImage, until } from "./lib/fakes.js";

/** @typedef {import("../nbd/engine.js").State} State */

const SocketClass = /** @type {any} */ (FakeWebSocket);
const ENTER = bytes(CLIENT_FLAGS, option(Option.GO, goData("")));

beforeEach(() => {
  FakeWebSocket.made.length = 0;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setInterval", "setTimeout"] });
});

/** @param {{messages?: boolean, size?: number}} [choices] */
async function connect({ messages = false, size = 10_000 } = {}) {
  const image = { ...patternImage(size), name: "disk.iso", modified: 1_700_000_000_000 };
  /** @type {State[]} */
  const states = [];
  const address = { url: "ws://host/nbd/0", protocols: [], messages };
  const source = await openImage(image);
  const engine = new Engine(address, source, (state) => states.push(state), SocketClass);
  engine.start();
  return { engine, states, socket: FakeWebSocket.latest(), last: () => states[states.length - 1] };
}

/** @param {Parameters<typeof connect>[0]} [choices] */
async function serving(choices) {
  const connected = await connect(choices);
  connected.socket.open();
  connected.socket.deliver(ENTER);
  connected.socket.takeBytes();
  assert.equal(connected.last().phase, "serving");
  return connected;
}

test("a plain link carries NBD bytes and nothing else", async () => {
  const { socket, engine } = await serving();
  engine.stop();
  assert.deepEqual(socket.takeMessages(), []);
});

test("a version 1 link begins with the image, then speaks NBD", async () => {
  const { socket } = await connect({ messages: true });
  assert.deepEqual(socket.sent, [], "nothing before it is open");
  socket.open();
  assert.equal(
    socket.sent[0],
    '{"type":"image","name":"disk.iso","size":10000,"modified":1700000000000}',
  );
  assert.equal(new Reader(socket.takeBytes()).greeting().flags, 3);
});

test("messages of one byte each are a stream like any other", async () => {
  const { socket, last } = await connect({ messages: true });
  socket.open();
  socket.takeBytes();
  const read = request({ type: Command.READ, offset: 7, length: 9 });
  socket.deliver(bytes(ENTER, read), 1);
  assert.equal(last().phase, "serving");
  // Its handshake, a ping, and the answer.
  await until(() => socket.sent.length >= 4);
  assert.deepEqual(socket.takeBytes().subarray(-9), pattern(7, 9));
});

test("what was read is told once, and the latest read stays known", async () => {
  const { socket, states, last } = await serving({ size: 4096 * 4096 });
  socket.deliver(request({ type: Command.READ, offset: 4096 * 7, length: 100 }));
  await until(() => socket.sent.length > 0);
  mock.timers.tick(250);
  assert.deepEqual(last().reads, [{ offset: 4096 * 7, length: 4096 }]);
  const { offset, length, time } = last().lastRead ?? {};
  assert.deepEqual([offset, length], [4096 * 7, 100]);
  assert.ok(Number(time) <= last().time);
  socket.deliver(request({ type: Command.FLUSH }));
  mock.timers.tick(250);
  assert.deepEqual([last().requests, last().reads], [2, []]);
  assert.equal(last().lastRead?.offset, 4096 * 7);
  assert.equal(states.filter(({ reads }) => reads.length > 0).length, 1);
});

test("the round trip is measured by a ping after each beat, one at a time", async () => {
  const { socket, last } = await serving({ messages: true });
  const pings = () => socket.sent.splice(0).filter((one) => one === '{"type":"ping"}').length;
  pings();
  assert.equal(last().roundTrip, null);
  socket.deliverText({ type: "beat" });
  assert.equal(pings(), 0, "the first is not answered yet");
  socket.deliverText({ type: "pong" });
  const { roundTrip } = last();
  assert.ok(roundTrip !== null && roundTrip >= 0);
  socket.deliverText({ type: "beat" });
  assert.equal(pings(), 1);
});

test("no message is longer than 131,072 bytes while no request is", async () => {
  const { socket } = await serving({ size: 50_000_000 });
  for (let offset = 0; offset < 12_000_000; offset += 131_072) {
    socket.deliver(request({ type: Command.READ, offset, length: 131_072 }));
    await until(() => socket.sent.length >= 2);
    for (const message of socket.sent.splice(0)) {
      assert.ok(message.length <= 131_072);
    }
  }
});

test("what the server says of the device is told as it is; what is unknown is ignored", async () => {
  const { socket, last, states } = await serving({ messages: true });
  const state = { phase: "attached", configuration: "0", device: "/dev/nbd0", size: 10240 };
  socket.deliverText({ type: "state", ...state });
  assert.deepEqual(last().server, state);
  const count = states.length;
  socket.deliverText({ type: "beat" });
  socket.deliverText({ type: "weather", sun: true });
  socket.deliverText({ no: "type" });
  assert.equal(states.length, count);
  assert.equal(socket.closeAsked, null);
});

test("what the server says at the end is kept, and closing in order then is no error", async () => {
  const { socket, last } = await serving({ messages: true });
  socket.deliverText({ type: "end", reason: "ejected", message: "Somebody ejected it." });
  socket.closeByServer(1000);
  assert.deepEqual(last().end, { reason: "ejected", message: "Somebody ejected it." });
  assert.deepEqual([last().phase, last().error, last().closeCode], ["ended", null, 1000]);
});

test("stop says bye on a version 1 link, closes with 1000 and ends without an error", async () => {
  const { engine, socket, last } = await serving({ messages: true });
  socket.takeMessages();
  engine.stop();
  assert.deepEqual(socket.takeMessages(), [{ type: "bye" }]);
  assert.equal(socket.closeAsked?.code, 1000);
  socket.closeByServer(1000);
  assert.deepEqual([last().phase, last().error, last().closeCode], ["ended", null, 1000]);
});

test("stop ends even when the server does not answer", async () => {
  const { engine, last } = await serving();
  engine.stop();
  assert.equal(last().phase, "serving");
  mock.timers.tick(2000);
  assert.deepEqual([last().phase, last().error], ["ended", null]);
});

test("stop before the link has opened is no error", async () => {
  const { engine, socket, last } = await connect();
  engine.stop();
  socket.closeByServer(1006);
  assert.deepEqual([last().phase, last().error], ["ended", null]);
});

test("after fifteen seconds of silence a version 1 link is lost; any byte or beat begins them anew", async () => {
  const { socket, last } = await serving({ messages: true });
  mock.timers.tick(14_000);
  socket.deliverText({ type: "beat" });
  mock.timers.tick(14_000);
  socket.deliver(request({ type: Command.FLUSH }));
  mock.timers.tick(14_000);
  assert.equal(last().phase, "serving");
  mock.timers.tick(1000);
  assert.deepEqual([last().phase, last().held?.code], ["held", "silent"]);
  assert.equal(socket.closeAsked?.code, 4408, "a lost link to the server, not an end");
});

test("a plain link may be silent for as long as it likes", async () => {
  const { last } = await serving();
  mock.timers.tick(3_600_000);
  assert.equal(last().phase, "serving");
});

test("a server that never answers is unreachable", async () => {
  const { last } = await connect({ messages: true });
  mock.timers.tick(15_000);
  assert.equal(last().error?.code, "unreachable");
});

test("each close code has its word, and the server's reason is passed on", async () => {
  const words = {
    4401: "not-allowed",
    4404: "no-configuration",
    4409: "busy",
    4410: "other-image",
    4412: "superseded",
    4429: "too-many",
    1001: "lost",
    1006: "lost",
    1011: "closed",
    4999: "closed",
  };
  for (const [code, word] of Object.entries(words)) {
    const { socket, last } = await serving();
    socket.closeByServer(Number(code), "because of this");
    const expected = { code: word, reason: "because of this", closeCode: Number(code) };
    assert.deepEqual([last().phase, last().error], ["ended", expected]);
    const silent = await serving();
    silent.socket.closeByServer(Number(code));
    assert.ok((silent.last().error?.reason.length ?? 0) > 20, "there is a sentence anyway");
  }
});

test("a link that was never opened is unreachable", async () => {
  const { socket, last } = await connect();
  socket.closeByServer(1006);
  assert.equal(last().error?.code, "unreachable");
});

test("a close in order before anything was asked for is an error: a silent refusal", async () => {
  const { socket, last } = await connect();
  socket.open();
  socket.closeByServer(1000);
  assert.equal(last().error?.code, "closed");
});

test("a close in order while serving is none", async () => {
  for (const code of [1000, 1005]) {
    const { socket, last } = await serving();
    socket.closeByServer(code);
    assert.deepEqual([last().phase, last().error, last().closeCode], ["ended", null, code]);
  }
});

test("a broken rule closes the link and is named", async () => {
  const { socket, last } = await serving();
  socket.deliver(bytes("deadbeef", new Uint8Array(24)));
  assert.equal(socket.closeAsked?.code, 4400);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "protocol"]);
  assert.match(String(last().error?.reason), /0xdeadbeef/);
  socket.deliver(request({ type: Command.FLUSH }));
  assert.equal(last().requests, 0);
});

test("text on a plain link is named for what it is: websocketd without --binary", async () => {
  const { socket, last } = await serving();
  socket.deliverText("NBD?");
  assert.equal(last().error?.code, "protocol");
  assert.match(String(last().error?.reason), /--binary/);
});

test("text that is no JSON object breaks the rules of version 1", async () => {
  for (const text of ["{", "null", "[]", '"beat"', `{"type":"${"x".repeat(70_000)}"}`]) {
    const { socket, last } = await serving({ messages: true });
    socket.deliverText(text);
    assert.equal(last().held?.code, "protocol");
    assert.equal(socket.closeAsked?.code, 4400);
  }
});

test("DISC closes a plain link at once", async () => {
  const { socket } = await serving();
  socket.deliver(request({ type: Command.DISC }));
  assert.equal(socket.closeAsked?.code, 1000);
});

test("DISC on a version 1 link leaves the server time to say why", async () => {
  const { socket, last } = await serving({ messages: true });
  socket.deliver(request({ type: Command.DISC }));
  socket.deliverText({ type: "end", reason: "ejected", message: "Gone." });
  assert.equal(last().end?.reason, "ejected");
  assert.equal(socket.readyState, socket.OPEN);
  mock.timers.tick(1000);
  assert.equal(socket.closeAsked?.code, 1000);
});

test("reads wait while the WebSocket is full", async () => {
  const { socket } = await serving();
  socket.bufferedAmount = 2 ** 30;
  socket.deliver(request({ type: Command.READ, length: 512 }));
  mock.timers.tick(1000);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(socket.sent.length, 0);
  socket.bufferedAmount = 0;
  mock.timers.tick(10);
  await until(() => socket.sent.length === 1);
});

test("counts are told at most four times a second", async () => {
  const { socket, states, last } = await serving();
  const before = states.length;
  for (let count = 0; count < 100; count++) {
    socket.deliver(request({ type: Command.READ, length: 100, offset: count }));
  }
  await until(() => socket.sent.length === 100);
  assert.equal(states.length, before);
  mock.timers.tick(250);
  assert.equal(states.length, before + 1);
  assert.deepEqual([last().requests, last().bytes], [100, 10_000]);
  mock.timers.tick(5000);
  assert.equal(states.length, before + 1, "and not at all while nothing moves");
});

test("an image that can't be read is told once, and again when it can", async () => {
  const sound = patternImage(10_000);
  let broken = false;
  const image = {
    size: sound.size,
    /**
     * @param {number} offset
     * @param {number} length
     */
    read: (offset, length) =>
      broken
        ? Promise.reject(new DOMException("changed", "NotReadableError"))
        : sound.read(offset, length),
  };
  /** @type {State[]} */
  const states = [];
  const address = { url: "ws://host/", protocols: [], messages: false };
  const source = await openImage(image, { name: "disk.iso" });
  new Engine(address, source, (state) => states.push(state), SocketClass).start();
  const socket = FakeWebSocket.latest();
  socket.open();
  socket.deliver(ENTER);
  socket.takeBytes();
  broken = true;
  for (let count = 1; count <= 3; count++) {
    socket.deliver(request({ type: Command.READ, length: 512 }));
    await until(() => socket.sent.length === count);
  }
  assert.equal(new Reader(socket.takeBytes()).simpleReply().errno, 5);
  const troubled = states.filter(({ trouble }) => trouble !== null);
  assert.equal(troubled.length, 1);
  assert.equal(troubled[0].trouble?.code, "image-changed");
  assert.equal(troubled[0].phase, "serving");
  broken = false;
  socket.deliver(request({ type: Command.READ, length: 512 }));
  await until(() => socket.sent.length === 1);
  assert.equal(states[states.length - 1].trouble, null);
});
