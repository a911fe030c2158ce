// `nbd-proxy share` over a line that can go bad.

import assert from "node:assert/strict";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { sha256 } from "./images.mjs";
import { Line } from "./line.mjs";
import { atEnd, background, output, waitFor } from "./process.mjs";
import { PROGRAM } from "./program.mjs";

/** @typedef {import("node:test").TestContext} TestContext */
/** @typedef {Awaited<ReturnType<typeof import("./program.mjs").serve>>} Server */

/**
 * A line to a server.
 *
 * @param {TestContext} t
 * @param {Server} server
 * @param {import("./line.mjs").Shape} [shape]
 */
export async function lineTo(t, server, shape) {
  const line = await new Line(Number(server.url.port), shape).listen();
  atEnd(t, () => line.close());
  return line;
}

/**
 * Shares an image with a server, over a line or directly.
 *
 * @param {TestContext} t
 * @param {Server} server
 * @param {string} image
 * @param {{line?: Line, name?: string, args?: string[]}} [options] name: of the configuration
 */
export function share(t, server, image, { line, name = "0", args = [] } = {}) {
  const port = line ? line.port : server.url.port;
  const url = `ws://127.0.0.1:${port}/nbd/${name}#token=${server.token}`;
  const sharing = background(t, PROGRAM, ["share", image, url, ...args]);
  // A stopped process takes no signal but these.
  atEnd(t, () => sharing.child.kill("SIGCONT"));
  return sharing;
}

/**
 * Begins to read a whole device, and to hash it; an error of the device is one of the promise.
 *
 * @param {Server} server
 * @param {any} session
 * @returns {Promise<string>} SHA-256
 */
export async function hashDevice(server, session) {
  const device = session.device;
  if ((await stat(device)).isBlockDevice()) return sha256(device);
  const copy = join(server.folder, `copy-${Math.random()}`);
  await output("nbdcopy", [`nbd+unix:///?socket=${device}`, copy]);
  return sha256(copy);
}

/**
 * Waits until the machine has read so much more of the image.
 *
 * @param {Server} server
 * @param {string} name
 * @param {number} bytes
 */
export async function readOn(server, name, bytes) {
  const before = (await server.session(name)).bytes_read;
  await waitFor(`${bytes} bytes more are read`, async () => {
    const session = await server.session(name);
    assert.ok(session, "the session is over");
    return session.bytes_read >= before + bytes;
  });
}

/** @param {Server} server @param {string} name */
export async function held(server, name = "0") {
  await waitFor("the session is held", async () => (await server.session(name)).state === "held");
}

/**
 * Waits until a session of the server was resumed so often, and gives how often it was.
 *
 * @param {Server} server
 * @param {number} times
 */
export async function resumed(server, times) {
  const count = () => server.program.stderr.split(": resumed").length - 1;
  await waitFor(`loss ${times} is over`, () => count() >= times);
  return count();
}
