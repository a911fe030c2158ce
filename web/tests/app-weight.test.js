import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";
import { gzipSync } from "node:zlib";

const WEB = new URL("../", import.meta.url);
/** Bytes of all that the page may load, each file compressed by itself. */
const LIMIT = 100_000;

/** @returns {string[]} what the page is made of */
function files() {
  const folders = ["app", "nbd"].flatMap((folder) =>
    readdirSync(new URL(folder, WEB), { recursive: true }).map((name) => `${folder}/${name}`),
  );
  return ["index.html", ...folders.filter((name) => /\.(js|css|svg)$/.test(name))];
}

test("the page is under 100 KB compressed", () => {
  const total = files().reduce(
    (sum, name) => sum + gzipSync(readFileSync(new URL(name, WEB))).length,
    0,
  );
  assert.ok(total < LIMIT, `${total} bytes`);
});

test("the page asks nothing of other hosts", () => {
  for (const name of files()) {
    const text = readFileSync(new URL(name, WEB), "utf8");
    const foreign = text.match(/(?:src|href|url|import|fetch)\W{1,3}(?:https?:)?\/\/\w[^"')]*/g);
    assert.equal(foreign, null, name);
  }
});
