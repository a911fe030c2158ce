// Links that are lost and come back: an engine with WebSockets whose other end is the test, and a
// clock that is the test's.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { withSession } from "../nbd/address.js";
import { Engine } from "../nbd/engine.js";
import { backoff } from "../nbd/hold.js";
import { openImage } from "../nbd/image.js";
import { NBDServer } from "../nbd/nbd.js";
import { Command, Option } from "../nbd/protocol.js";
import { bytes, CLIENT_FLAGS, goData, option, Reader, request } from "./lib/client.js";
import { FakeWebSocket, pattern, patternImage, until } from "./lib/fakes.js";

/** @typedef {import("../nbd/engine.js").State} State */

const SocketClass = /** @type {any} */ (FakeWebSocket);
const ENTER = bytes(CLIENT_FLAGS, option(Option.GO, goData("")));
const LONGEST_DELAY = 10_000;

/** The wall clock. It is apart from the timers, because a machine that sleeps has no timers. */
let now = 0;

beforeEach(() => {
  FakeWebSocket.made.length = 0;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setInterval", "setTimeout"] });
  now = 1_700_000_000_000;
  mock.method(Date, "now", () => now);
});

/** @param {Partial<import("../nbd/link.js").LinkAddress> & {image?: any}} [choices] */
async function connect({ image = patternImage(100_000), ...rest } = {}) {
  /** @type {State[]} */
  const states = [];
  const address = { url: "ws://host/nbd/0", protocols: [], messages: true, ...rest };
  const source = await openImage(image, { name: "disk.iso" });
  const engine = new Engine(address, source, (state) => states.push(state), SocketClass);
  engine.start();
  return { engine, states, last: () => states[states.length - 1] };
}

/** @param {number} ms */
function pass(ms) {
  for (let passed = 0; passed < ms; passed += 1000) {
    const step = Math.min(1000, ms - passed);
    now += step;
    mock.timers.tick(step);
  }
}

/** Does the handshake on the latest WebSocket. */
function accept() {
  const socket = FakeWebSocket.latest();
  socket.open();
  socket.deliver(ENTER);
  socket.takeBytes();
  return socket;
}

/** @param {Parameters<typeof connect>[0] & {hold?: number}} [choices] */
async function serving({ hold, ...choices } = {}) {
  const connected = await connect(choices);
  const socket = accept();
  if (hold !== undefined) {
    socket.deliverText({ type: "state", phase: "attached", hold });
  }
  return { ...connected, socket };
}

test("the delay grows from 0.25 s to 10 s, and chance has a say in it", () => {
  for (let failures = 0; failures < 40; failures++) {
    const [least, most] = [backoff(failures, () => 0), backoff(failures, () => 0.999_999)];
    assert.equal(least, 250);
    assert.ok(most > 499 && most <= 10_000, `${most}`);
    assert.ok(most >= backoff(failures - 1, () => 0.999_999) || failures === 0);
  }
  assert.ok(backoff(40, () => 0.999_999) > 9999);
});

test("what may pass is held and tried again; another link of the same session goes on", async () => {
  for (const code of [1001, 1006, 1011, 4408, 4429]) {
    const { last, socket, states } = await serving();
    const sockets = FakeWebSocket.made.length;
    socket.closeByServer(code, "because");
    assert.equal(last().phase, "held", String(code));
    assert.equal(last().held?.reason, "because");
    assert.equal(last().held?.secondsLeft, 300, "by default");
    assert.equal(last().error, null);
    pass(500);
    assert.equal(FakeWebSocket.made.length, sockets + 1);
    const next = accept();
    assert.notEqual(next, socket);
    assert.equal(JSON.parse(String(next.sent[0])).type, "image");
    assert.equal(last().phase, "serving");
    assert.equal(last().held, null);
    const phases = states.map(({ phase }) => phase);
    assert.deepEqual(
      phases.filter((phase, index) => phase !== phases[index - 1]),
      ["connecting", "serving", "held", "serving"],
    );
  }
});

test("what ends a session ends it here", async () => {
  for (const code of [1000, 1005, 4400, 4401, 4404, 4409, 4410, 4412, 4500]) {
    const { last, socket } = await serving();
    const sockets = FakeWebSocket.made.length;
    socket.closeByServer(code);
    assert.equal(last().phase, "ended", String(code));
    pass(60_000);
    assert.equal(FakeWebSocket.made.length, sockets);
  }
});

test("after `end` nothing is tried again, however the link goes", async () => {
  const { last, socket } = await serving();
  socket.deliverText({ type: "end", reason: "ejected", message: "Ejected." });
  socket.closeByServer(1006);
  assert.equal(last().phase, "ended");
});

test("a plain link never comes back", async () => {
  const { last, socket } = await serving({ messages: false });
  socket.closeByServer(1006);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "lost"]);
});

test("a session that was never served is not waited for", async () => {
  const { last } = await connect();
  FakeWebSocket.latest().closeByServer(1006);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "unreachable"]);
});

test("a server that can't be reached is tried until hold has passed, then it is over", async () => {
  const { last, socket } = await serving({ hold: 60 });
  socket.closeByServer(1006);
  let attempts = 0;
  for (let second = 0; last().phase === "held" && second < 200; second++) {
    pass(1000);
    const latest = FakeWebSocket.latest();
    if (latest.readyState === 0) {
      attempts += 1;
      latest.closeByServer(1006);
    }
  }
  assert.ok(attempts >= 6 && attempts <= 80, `${attempts} attempts`);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "lost"]);
  assert.equal(last().held, null);
  const sockets = FakeWebSocket.made.length;
  pass(60_000);
  assert.equal(FakeWebSocket.made.length, sockets);
});

test("the time that is left is told each second, and never more than hold", async () => {
  const { last, socket, states } = await serving({ hold: 20 });
  socket.closeByServer(1006);
  const before = states.length;
  pass(100);
  const told = new Set();
  for (let second = 0; second < 30; second++) {
    pass(1000);
    told.add(last().held?.secondsLeft);
  }
  assert.ok(states.length - before >= 30);
  assert.ok([...told].every((left) => Number(left) <= 20));
  assert.ok(told.has(10));
});

test("hold 0 is an end at once", async () => {
  const { last, socket } = await serving({ hold: 0 });
  socket.closeByServer(1006);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "lost"]);
});

test("an attempt that nobody answers is given up after 15 s, and another follows", async () => {
  const { socket } = await serving();
  socket.closeByServer(1006);
  pass(500);
  const stuck = FakeWebSocket.latest();
  assert.notEqual(stuck, socket);
  pass(15_000 + LONGEST_DELAY);
  assert.notEqual(stuck.closeAsked, null);
  assert.notEqual(FakeWebSocket.latest(), stuck);
});

test("waking tries at once, in place of an attempt that is stuck", async () => {
  const { engine, socket, last } = await serving();
  socket.closeByServer(1006);
  engine.wake();
  const first = FakeWebSocket.latest();
  assert.notEqual(first, socket);
  engine.wake();
  const second = FakeWebSocket.latest();
  assert.notEqual(second, first);
  assert.notEqual(first.closeAsked, null);
  first.closeByServer(1006);
  assert.equal(FakeWebSocket.latest(), second, "what was abandoned has no say");
  accept();
  assert.equal(last().phase, "serving");
  pass(LONGEST_DELAY);
  assert.equal(FakeWebSocket.latest(), second);
});

test("waking leaves a link alone that is being set up", async () => {
  const { engine, socket, last } = await serving();
  socket.closeByServer(1006);
  engine.wake();
  FakeWebSocket.latest().open();
  const sockets = FakeWebSocket.made.length;
  engine.wake();
  assert.equal(FakeWebSocket.made.length, sockets);
  FakeWebSocket.latest().deliver(ENTER);
  assert.equal(last().phase, "serving");
});

test("a link that lived through a wake has 6 s to be heard", async () => {
  const { engine, last, socket } = await serving();
  engine.wake();
  pass(5000);
  socket.deliverText({ type: "beat" });
  pass(14_000);
  assert.equal(last().phase, "serving");
  pass(1000);
  assert.equal(last().phase, "held");
});

test("after a sleep a dead link is noticed in seconds, and one that is heard is not lost", async () => {
  const dead = await serving();
  now += 100_000;
  pass(7000);
  assert.equal(dead.last().phase, "held");
  dead.engine.stop();

  const alive = await serving();
  now += 100_000;
  alive.socket.deliverText({ type: "beat" });
  pass(5000);
  alive.socket.deliverText({ type: "beat" });
  pass(5000);
  assert.equal(alive.last().phase, "serving");
});

test("who slept longer than hold does not come back: the disk would be a fresh one", async () => {
  const { last, socket, engine } = await serving({ hold: 60 });
  now += 3_600_000;
  socket.closeByServer(1006);
  engine.wake();
  assert.equal(FakeWebSocket.latest(), socket);
  assert.deepEqual([last().phase, last().error?.code], ["ended", "lost"]);
});

test("what an older link had asked for is not answered on the next one", async () => {
  /** @type {(() => void)[]} */
  const waiting = [];
  const sound = patternImage(100_000);
  const image = {
    ...sound,
    /** @param {number} offset @param {number} length */
    read: async (offset, length) => {
      await new Promise((resolve) => waiting.push(() => resolve(undefined)));
      return sound.read(offset, length);
    },
  };
  const { last, socket } = await serving({ image });
  socket.deliver(request({ type: Command.READ, offset: 0, length: 512, cookie: 1 }));
  await until(() => waiting.length === 1);
  socket.closeByServer(1006);
  pass(500);
  const next = accept();
  next.sent.length = 0;
  for (const go of waiting.splice(0)) go();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(next.sent, []);
  assert.equal(last().requests, 0);
  next.deliver(request({ type: Command.READ, offset: 70_000, length: 512, cookie: 2 }));
  await until(() => waiting.length === 1);
  waiting[0]();
  await until(() => next.sent.length >= 1);
  const reader = new Reader(next.takeBytes());
  assert.equal(reader.simpleReply().cookie, 2n);
  assert.deepEqual(reader.take(512), pattern(70_000, 512));
});

test("an attempt that is refused for good ends it, with the server's reason", async () => {
  const { last, socket } = await serving();
  socket.closeByServer(1006);
  pass(500);
  FakeWebSocket.latest().open();
  FakeWebSocket.latest().closeByServer(4410, "another image");
  assert.deepEqual(last().error, {
    code: "other-image",
    reason: "another image",
    closeCode: 4410,
  });
});

test("stop while held ends at once", async () => {
  const { engine, last, socket } = await serving();
  socket.closeByServer(1006);
  engine.stop();
  assert.deepEqual([last().phase, last().error], ["ended", null]);
  const sockets = FakeWebSocket.made.length;
  pass(60_000);
  assert.equal(FakeWebSocket.made.length, sockets);
});

test("only the first link takes over: a later one is none that takes", async () => {
  const endpoint = new URL("ws://host/nbd/0");
  const id = "0123456789abcdef0123456789abcdef";
  assert.match(withSession(endpoint, id, true).search, /&takeover=1$/);
  assert.doesNotMatch(withSession(endpoint, id).search, /takeover/);
  const server = new NBDServer(endpoint, patternImage(100_000), {
    session: id,
    takeover: true,
    WebSocket: SocketClass,
  });
  server.start();
  await until(() => FakeWebSocket.made.length === 1);
  const first = accept();
  assert.match(first.url, /takeover=1/);
  first.closeByServer(1006);
  pass(500);
  const second = FakeWebSocket.latest();
  assert.equal(second.url, `ws://host/nbd/0?session=${id}&v=1`);
  server.stop();
});

test("the window's events reach the link while it serves, and no longer", async (t) => {
  const scope = /** @type {any} */ (globalThis);
  const window = new EventTarget();
  scope.addEventListener = window.addEventListener.bind(window);
  scope.removeEventListener = window.removeEventListener.bind(window);
  t.after(() => {
    delete scope.addEventListener;
    delete scope.removeEventListener;
  });
  const options = { WebSocket: SocketClass };
  const server = new NBDServer("ws://host/nbd/0", patternImage(100_000), options);
  server.start();
  await until(() => FakeWebSocket.made.length === 1);
  accept().closeByServer(1006);
  for (const type of ["online", "visibilitychange", "pageshow"]) {
    const sockets = FakeWebSocket.made.length;
    window.dispatchEvent(new Event(type));
    assert.equal(FakeWebSocket.made.length, sockets + 1, type);
  }
  server.stop();
  const sockets = FakeWebSocket.made.length;
  window.dispatchEvent(new Event("online"));
  assert.equal(FakeWebSocket.made.length, sockets);
});
