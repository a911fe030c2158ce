import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import test from "node:test";
import { Sha256 } from "../app/sha256.js";

/** @param {...Uint8Array} parts @returns {string} */
function sum(...parts) {
  const hash = new Sha256();
  for (const part of parts) hash.update(part);
  return hash.hex();
}

test("the examples of NIST", () => {
  /** @param {string} text */
  const of = (text) => sum(new TextEncoder().encode(text));
  assert.equal(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  assert.equal(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert.equal(
    of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
    "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
  );
  assert.equal(
    of("a".repeat(1_000_000)),
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
  );
});

test("every length around a block's, in two parts, is as Node.js has it", () => {
  for (let length = 0; length <= 200; length += 1) {
    const bytes = new Uint8Array(randomBytes(length));
    const expected = createHash("sha256").update(bytes).digest("hex");
    const cut = length >> 1;
    assert.equal(sum(bytes.subarray(0, cut), bytes.subarray(cut)), expected, `${length}`);
  }
});
