import assert from "node:assert/strict";
import { openAsBlob } from "node:fs";
import { appendFile, mkdtemp, rm, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { openImage } from "../nbd/image.js";
import { ImageError } from "../nbd/image-error.js";
import { pattern, patternImage } from "./lib/fakes.js";

let folder = "";

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbd-image-"));
});

after(() => rm(folder, { recursive: true }));

/** @param {Uint8Array<ArrayBuffer>} content */
async function fileOnDisk(content) {
  const path = join(folder, `${Math.random()}.img`);
  await writeFile(path, content);
  return { path, blob: await openAsBlob(path) };
}

/**
 * @param {unknown} image
 * @param {string} code
 * @param {RegExp} message
 */
async function refused(image, code, message) {
  await assert.rejects(openImage(image), (error) => {
    assert.ok(error instanceof ImageError);
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  });
}

/**
 * @param {import("../nbd/image.js").Source} source
 * @param {string} code
 * @param {RegExp} message
 */
async function unreadable(source, code, message) {
  await assert.rejects(source.read(0, 4), (error) => {
    assert.ok(error instanceof ImageError);
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  });
}

test("a File tells its name, size and time, and is read where it is asked", async () => {
  const file = new File([pattern(0, 1000)], "disk.iso", { lastModified: 1_700_000_000_000 });
  const source = await openImage(file);
  assert.deepEqual(source.info, { name: "disk.iso", size: 1000, modified: 1_700_000_000_000 });
  assert.equal(source.blob, file);
  assert.deepEqual(await source.read(990, 10), pattern(990, 10));
});

test("a Blob has no name and no time of its own", async () => {
  const blob = new Blob([pattern(0, 10)]);
  assert.deepEqual((await openImage(blob)).info, { name: "image", size: 10, modified: null });
  const given = { name: "mine.img", modified: 5 };
  assert.deepEqual((await openImage(blob, given)).info, { ...given, size: 10 });
});

test("a file handle gives its file", async () => {
  const file = new File([pattern(0, 10)], "handle.img", { lastModified: 7 });
  const source = await openImage({ kind: "file", name: "handle.img", getFile: async () => file });
  assert.deepEqual(source.info, { name: "handle.img", size: 10, modified: 7 });
  assert.equal(source.blob, file);
});

test("a file handle without permission, or without its file, is refused with the reason", async () => {
  for (const [name, code, message] of /** @type {[string, string, RegExp][]} */ ([
    ["NotAllowedError", "image-denied", /may not read "x.img"/],
    ["NotFoundError", "image-gone", /not there as it was/],
  ])) {
    const getFile = () => Promise.reject(new DOMException("no", name));
    await refused({ name: "x.img", getFile }, code, message);
  }
});

test("anything with a size and a read is an image", async () => {
  const image = patternImage(2 ** 50);
  const source = await openImage({ ...image, name: "huge", modified: 3 });
  assert.deepEqual(source.info, { name: "huge", size: 2 ** 50, modified: 3 });
  assert.equal(source.blob, null);
  assert.deepEqual(await source.read(2 ** 49, 5), pattern(2 ** 49, 5));
});

test("a view that read() gives is copied, an ArrayBuffer is taken as it is", async () => {
  const mine = pattern(0, 100);
  const view = await openImage({ size: 100, read: () => mine });
  const copied = await view.read(0, 100);
  assert.deepEqual(copied, mine);
  assert.notEqual(copied.buffer, mine.buffer);
  const buffer = pattern(0, 100).buffer;
  const taken = await openImage({ size: 100, read: async () => buffer });
  assert.equal((await taken.read(0, 100)).buffer, buffer);
  const words = await openImage({ size: 8, read: () => new DataView(buffer, 8, 8) });
  assert.deepEqual(await words.read(0, 8), pattern(8, 8));
});

test("no image, an empty one and one without a size are refused with the reason", async () => {
  for (const nothing of [undefined, null, "path.iso", 5, {}]) {
    await refused(nothing, "no-image", /No image was chosen/);
  }
  await refused(new File([], "empty.img"), "empty-image", /"empty.img" is empty/);
  for (const size of [Number.NaN, -1, 1.5, 2 ** 53, Number.POSITIVE_INFINITY]) {
    await refused({ size, read: () => new ArrayBuffer(0) }, "image-unreadable", /no usable size/);
  }
});

test("a file that changed on disk can't be read any more, and the reason says so", async () => {
  const { path, blob } = await fileOnDisk(pattern(0, 100));
  const source = await openImage(blob, { name: "disk.iso" });
  assert.deepEqual(await source.read(0, 4), pattern(0, 4));
  await appendFile(path, "more");
  await unreadable(source, "image-changed", /"disk.iso" changed on disk since it was chosen/);
});

test("a file that vanished from the disk can't be read any more, and the reason says so", async () => {
  const { path, blob } = await fileOnDisk(pattern(0, 100));
  const source = await openImage(blob, { name: "disk.iso" });
  await unlink(path);
  await unreadable(source, "image-changed", /disk.iso/);
  const gone = { size: 9, read: () => Promise.reject(new DOMException("gone", "NotFoundError")) };
  await unreadable(await openImage(gone, { name: "d" }), "image-gone", /moved or deleted/);
});

test("a read that is too short or gives no bytes is an error, never wrong data", async () => {
  const short = await openImage({ size: 9, read: () => new Uint8Array(3) });
  await unreadable(short, "image-changed", /4 bytes at 0 were asked for, 3 came/);
  for (const result of [undefined, null, 4, "four", [1, 2, 3, 4]]) {
    const read = /** @type {any} */ (() => result);
    await unreadable(await openImage({ size: 9, read }), "image-unreadable", /ArrayBuffer/);
  }
});

test("whatever read() throws becomes a reason", async () => {
  const read = () => {
    throw "a string";
  };
  await unreadable(await openImage({ size: 9, read }), "image-unreadable", /a string/);
});

test("names that NBD can't carry are made such", async () => {
  const read = () => new ArrayBuffer(0);
  const { info } = await openImage({ size: 1, name: `\0${"🍏".repeat(3000)}`, read });
  assert.ok(new TextEncoder().encode(info.name).length <= 4096);
  assert.ok(!info.name.includes("\0"));
  const lone = await openImage({ size: 1, name: "\ud800", read });
  assert.equal(lone.info.name, "\ufffd");
});
