import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteQueue } from "../nbd/bytes.js";
import { Handshake } from "../nbd/handshake.js";
import { Info, Option, OptionReply, ProtocolError } from "../nbd/protocol.js";
import {
  bytes,
  CLIENT_FLAGS,
  contextData,
  goData,
  option,
  Reader,
  text,
  u16,
  u32,
  u64,
} from "./lib/client.js";

const EXPORT = { name: "debian.iso", description: "an image", size: 5_000_000_123 };
const REPLY_MAGIC = 0x3e889045565a9n;

/** @param {Partial<typeof EXPORT>} [changes] */
function begin(changes = {}) {
  const handshake = new Handshake({ ...EXPORT, ...changes });
  const input = new ByteQueue();
  handshake.takeOutput();
  /** @param {...Uint8Array} parts */
  const say = (...parts) => {
    input.push(bytes(...parts));
    const end = handshake.advance(input);
    return { end, output: bytes(...handshake.takeOutput()), left: input.length };
  };
  return { handshake, say };
}

/** @param {...Uint8Array} options */
function negotiate(...options) {
  const { end, output, left } = begin().say(CLIENT_FLAGS, ...options);
  return { end, left, replies: new Reader(output).optionReplies() };
}

/** @param {Uint8Array} opt */
function types(opt) {
  return negotiate(opt).replies.map(({ type }) => type);
}

test("greets as a fixed newstyle server that can leave out the zeroes", () => {
  const [greeting] = new Handshake(EXPORT).takeOutput();
  assert.deepEqual(greeting, bytes("4e42444d41474943 49484156454f5054 0003"));
});

test("EXPORT_NAME, byte for byte", () => {
  const { say } = begin();
  const { end, output } = say(
    bytes("00000003", "49484156454f5054 00000001 0000000a", text("debian.iso")),
  );
  // 5,000,000,123 bytes; HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_CACHE.
  assert.deepEqual(output, bytes("000000012a05f27b", "0407"));
  assert.deepEqual(end, {
    type: "transmission",
    negotiated: { structured: false, allocation: false },
  });
});

test("EXPORT_NAME sends 124 zeroes to a client that did not ask to leave them out", () => {
  const { say } = begin();
  const { output } = say(u32(1), option(Option.EXPORT_NAME));
  assert.equal(output.length, 134);
  assert.ok(output.subarray(10).every((byte) => byte === 0));
});

test("EXPORT_NAME works for a client that knows only newstyle", () => {
  assert.equal(begin().say(u32(0), option(Option.EXPORT_NAME)).end?.type, "transmission");
});

test("EXPORT_NAME of another export ends the connection", () => {
  const { say } = begin();
  assert.throws(() => say(CLIENT_FLAGS, option(Option.EXPORT_NAME, text("other.iso"))), {
    name: "ProtocolError",
    message: /there is only "debian.iso"/,
  });
});

test("client flags that nobody defined end the connection", () => {
  assert.throws(() => begin().say(u32(7)), ProtocolError);
});

test("an option without its magic number ends the connection", () => {
  assert.throws(() => begin().say(CLIENT_FLAGS, bytes(u64(1), u32(1), u32(0))), ProtocolError);
});

test("ABORT is acknowledged and ends the handshake, whatever data it carries", () => {
  for (const data of [new Uint8Array(0), text("goodbye")]) {
    const { end, replies } = negotiate(option(Option.ABORT, data));
    assert.deepEqual(end, { type: "aborted" });
    assert.deepEqual(replies, [
      { magic: REPLY_MAGIC, option: Option.ABORT, type: OptionReply.ACK, data: bytes() },
    ]);
  }
});

test("LIST names the image once, with its description", () => {
  const { replies } = negotiate(option(Option.LIST));
  assert.deepEqual(
    replies.map(({ type }) => type),
    [OptionReply.SERVER, OptionReply.ACK],
  );
  assert.deepEqual(replies[0].data, bytes(u32(10), text("debian.iso"), text("an image")));
});

test("LIST and STRUCTURED_REPLY with data are invalid", () => {
  assert.deepEqual(types(option(Option.LIST, u16(1))), [OptionReply.ERR_INVALID]);
  assert.deepEqual(types(option(Option.STRUCTURED_REPLY, u16(1))), [OptionReply.ERR_INVALID]);
});

test("INFO tells what was asked for, and the handshake goes on", () => {
  const asked = [Info.BLOCK_SIZE, Info.NAME, Info.DESCRIPTION, 99];
  const { end, replies } = negotiate(option(Option.INFO, goData("", asked)));
  assert.equal(end, null);
  assert.deepEqual(
    replies.map(({ type, data }) => [type, data]),
    [
      [OptionReply.INFO, bytes(u16(0), u64(EXPORT.size), "0407")],
      [OptionReply.INFO, bytes(u16(1), text("debian.iso"))],
      [OptionReply.INFO, bytes(u16(2), text("an image"))],
      [OptionReply.INFO, bytes(u16(3), u32(1), u32(4096), u32(33554432))],
      [OptionReply.ACK, bytes()],
    ],
  );
});

test("GO enters transmission by either name, without zeroes, and leaves the rest unread", () => {
  for (const name of ["", "debian.iso"]) {
    const { end, replies, left } = negotiate(option(Option.GO, goData(name)), u32(42));
    assert.equal(end?.type, "transmission");
    assert.deepEqual(
      replies.map(({ type }) => type),
      [OptionReply.INFO, OptionReply.ACK],
    );
    assert.equal(left, 4);
  }
});

test("INFO and GO for an unknown export are refused, and the handshake goes on", () => {
  for (const code of [Option.INFO, Option.GO]) {
    const { end, replies } = negotiate(option(code, goData("nope")), option(Option.LIST));
    assert.equal(end, null);
    assert.equal(replies[0].type, OptionReply.ERR_UNKNOWN);
    assert.equal(replies.length, 3);
  }
});

test("INFO and GO whose lengths contradict each other are invalid", () => {
  const cases = {
    empty: bytes(),
    "name longer than the data": bytes(u32(100), text("x"), u16(0)),
    "fewer requests than counted": bytes(u32(0), u16(2), u16(1)),
    "more data than counted": bytes(u32(0), u16(0), u16(1)),
    "name above 4,096 bytes": bytes(u32(4097), new Uint8Array(4097), u16(0)),
    "name of 2^32 - 1 bytes": bytes(u32(0xffffffff), u16(0)),
  };
  for (const [name, data] of Object.entries(cases)) {
    assert.deepEqual(types(option(Option.GO, data)), [OptionReply.ERR_INVALID], name);
  }
});

test("structured replies bring DF", () => {
  const { end, replies } = negotiate(
    option(Option.STRUCTURED_REPLY),
    option(Option.GO, goData("")),
  );
  assert.deepEqual(replies[1].data, bytes(u16(0), u64(EXPORT.size), "0487"));
  assert.deepEqual(end, {
    type: "transmission",
    negotiated: { structured: true, allocation: false },
  });
});

test("EXTENDED_HEADERS, STARTTLS, PEEK_EXPORT and the unknown are refused as unsupported", () => {
  for (const code of [Option.EXTENDED_HEADERS, Option.STARTTLS, 4, 0, 12, 0x7fffffff]) {
    const { end, replies } = negotiate(option(code, text("data")), option(Option.LIST));
    assert.equal(end, null);
    assert.equal(replies[0].type, OptionReply.ERR_UNSUP);
    assert.equal(replies[0].option, code);
    assert.equal(replies[1].type, OptionReply.SERVER);
  }
});

test("meta contexts need structured replies", () => {
  for (const code of [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT]) {
    assert.deepEqual(types(option(code, contextData("", []))), [OptionReply.ERR_INVALID]);
  }
});

test("LIST_META_CONTEXT lists base:allocation for no query, its wildcard and its name", () => {
  for (const queries of [[], ["base:"], ["base:allocation"], ["x-y:z", "base:"]]) {
    const { replies } = negotiate(
      option(Option.STRUCTURED_REPLY),
      option(Option.LIST_META_CONTEXT, contextData("", queries)),
    );
    assert.deepEqual(
      replies.slice(1).map(({ type, data }) => [type, data]),
      [
        [OptionReply.META_CONTEXT, bytes(u32(0), text("base:allocation"))],
        [OptionReply.ACK, bytes()],
      ],
    );
  }
});

test("LIST_META_CONTEXT ignores what it does not know", () => {
  const { replies } = negotiate(
    option(Option.STRUCTURED_REPLY),
    option(Option.LIST_META_CONTEXT, contextData("", ["qemu:", "base:dirty", "no colon"])),
  );
  assert.deepEqual(
    replies.slice(1).map(({ type }) => type),
    [OptionReply.ACK],
  );
});

test("SET_META_CONTEXT selects base:allocation by its name alone", () => {
  for (const [queries, selected] of /** @type {[string[], boolean][]} */ ([
    [["base:allocation"], true],
    [["x-y:z", "base:allocation"], true],
    [[], false],
    [["base:"], false],
    [["qemu:dirty-bitmap:x"], false],
  ])) {
    const { end, replies } = negotiate(
      option(Option.STRUCTURED_REPLY),
      option(Option.SET_META_CONTEXT, contextData("", queries)),
      option(Option.GO, goData("")),
    );
    assert.equal(replies[1].type, selected ? OptionReply.META_CONTEXT : OptionReply.ACK);
    assert.equal(end?.type === "transmission" && end.negotiated.allocation, selected);
  }
});

test("what was selected is lost with another export name or a later selection, failed or not", () => {
  const select = option(Option.SET_META_CONTEXT, contextData("", ["base:allocation"]));
  const later = {
    "another name": option(Option.LIST),
    "nothing selected": option(Option.SET_META_CONTEXT, contextData("", [])),
    "unknown export": option(Option.SET_META_CONTEXT, contextData("no", ["base:allocation"])),
    invalid: option(Option.SET_META_CONTEXT, u16(0)),
  };
  for (const [name, between] of Object.entries(later)) {
    const chosen = name === "another name" ? "debian.iso" : "";
    const { end } = negotiate(
      option(Option.STRUCTURED_REPLY),
      select,
      between,
      option(Option.GO, goData(chosen)),
    );
    assert.equal(end?.type === "transmission" && end.negotiated.allocation, false, name);
  }
});

test("meta context queries whose lengths contradict each other are invalid", () => {
  const cases = [
    bytes(u32(0), u32(1)),
    bytes(u32(0), u32(0xffffffff)),
    bytes(u32(0), u32(1), u32(5), text("base")),
    bytes(u32(0), u32(0), text("more")),
  ];
  for (const data of cases) {
    const { replies } = negotiate(
      option(Option.STRUCTURED_REPLY),
      option(Option.LIST_META_CONTEXT, data),
    );
    assert.equal(replies[1].type, OptionReply.ERR_INVALID);
    assert.equal(replies.length, 2);
  }
});

test("an option with too much data is skipped as it comes, and refused", () => {
  const { say } = begin();
  const size = 100 * 1024 * 1024;
  const header = bytes("49484156454f5054", u32(Option.INFO), u32(size));
  const refused = new Reader(say(CLIENT_FLAGS, header).output).optionReply();
  assert.equal(refused.type, OptionReply.ERR_TOO_BIG);
  const megabyte = new Uint8Array(1024 * 1024);
  for (let sent = 0; sent < size; sent += megabyte.length) {
    assert.equal(say(megabyte).left, 0);
  }
  const replies = new Reader(say(option(Option.LIST)).output).optionReplies();
  assert.equal(replies.length, 2);
});

test("an export name that is too long ends the connection", () => {
  const header = bytes("49484156454f5054", u32(Option.EXPORT_NAME), u32(0xffffffff));
  assert.throws(() => begin().say(CLIENT_FLAGS, header), ProtocolError);
});

test("a client that never chooses is left", () => {
  const { say } = begin();
  assert.throws(() => {
    say(CLIENT_FLAGS);
    for (let count = 0; count <= 1000; count++) {
      say(option(Option.LIST));
    }
  }, ProtocolError);
});

test("an image named in any script is found by its name in UTF-8", () => {
  const name = "образ-диска-🍏.img";
  const { say } = begin({ name });
  const { end, output } = say(CLIENT_FLAGS, option(Option.GO, goData(name, [Info.NAME])));
  assert.equal(end?.type, "transmission");
  assert.deepEqual(new Reader(output).optionReplies()[1].data, bytes(u16(1), text(name)));
});
