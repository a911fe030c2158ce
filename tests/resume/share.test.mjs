// A session outlives the link of `share`: a reader of the whole device meanwhile sees pauses, never an error.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { noise, sha256 } from "../lib/images.mjs";
import { waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";
import { hashDevice, held, lineTo, readOn, share } from "../lib/share.mjs";

const MIB = 1 << 20;
/** A whole number of sectors, so that the device is as long as the image. */
const SIZE = 24 * MIB;
/** Bits a second: the whole image takes about 5 s, so that what happens does so in mid-read. */
const RATE = 40_000_000;

/**
 * An image that is shared over a line, and a reader that hashes its device.
 *
 * @param {import("node:test").TestContext} t
 * @param {string} device
 * @param {Record<string, unknown>} [members] of the configuration
 * @param {number} [size] of the image
 */
async function reading(t, device, members = {}, size = SIZE) {
  const server = await serve(t, { 0: { device, ...members } });
  const image = await noise(join(server.folder, "image.img"), size);
  const line = await lineTo(t, server, { rate: RATE, delay: 5 });
  const sharing = share(t, server, image, { line });
  const session = await server.attached("0");
  const expected = await sha256(image);
  const hash = hashDevice(server, session);
  // A failure is told where the hash is awaited.
  hash.catch(() => {});
  await readOn(server, "0", 2 * MIB);
  const whole = async () => {
    assert.equal(await hash, expected);
    assert.equal((await server.session("0")).device, session.device);
  };
  return { server, image, line, sharing, whole };
}

for (const device of ["unix:", "loop:"]) {
  test(`${device} a cut line is found again within seconds, again and again`, async (t) => {
    // What was read is told once a second, some 5 MB at a time.
    const { server, line, sharing, whole } = await reading(t, device, {}, 3 * SIZE);
    for (let losses = 0; losses < 5; losses++) {
      line.cut();
      await readOn(server, "0", 2 * MIB);
    }
    await whole();
    assert.match(sharing.stderr, /the link is lost: .*; reconnecting, \d+ s left/);
    await sharing.stop("SIGINT");
    assert.equal(await sharing.ended, 0);
    await server.detached("0");
  });

  test(`${device} a line that falls silent is found out on both sides, and found again`, async (t) => {
    const { server, line, sharing, whole } = await reading(t, device, { silence: 3 });
    line.silence();
    await held(server);
    await sharing.says(/the server said nothing for 15 s; reconnecting/);
    line.restore();
    await whole();
  });

  test(`${device} a sharer that is killed is replaced by a new one with the same image`, async (t) => {
    const { server, image, line, sharing, whole } = await reading(t, device);
    sharing.child.kill("SIGKILL");
    await sharing.ended;
    await held(server);
    share(t, server, image, { line });
    await whole();
  });

  test(`${device} a sharer that is stopped for 20 s comes back`, async (t) => {
    const { server, sharing, whole } = await reading(t, device);
    sharing.child.kill("SIGSTOP");
    await sleep(20_000);
    assert.equal((await server.session("0")).state, "held");
    sharing.child.kill("SIGCONT");
    await whole();
  });

  test(`${device} another image is refused, the same one is not`, async (t) => {
    const { server, image, line, sharing, whole } = await reading(t, device);
    sharing.child.kill("SIGKILL");
    await held(server);
    const name = ["--name", "image.img"];
    const longer = await noise(join(server.folder, "longer.img"), SIZE + 512);
    const other = await noise(join(server.folder, "other.img"), SIZE);
    for (const wrong of [longer, other]) {
      const refused = share(t, server, wrong, { args: name });
      assert.equal(await refused.ended, 1);
      assert.match(refused.stderr, /image/);
      assert.equal((await server.session("0")).state, "held");
    }
    share(t, server, image, { line });
    await whole();
  });
}

test("a sharer comes back past its own ghost", async (t) => {
  // The server would wait for the ghost for another minute.
  const { server, line, sharing, whole } = await reading(t, "unix:", { silence: 75 });
  line.strand();
  await sharing.says(/the server said nothing for 15 s; reconnecting/);
  await whole();
  assert.equal((await server.session("0")).state, "attached");
});

test("another sharer takes over in mid-read when told to", async (t) => {
  const { server, image, line, sharing, whole } = await reading(t, "unix:");
  const refused = share(t, server, image);
  assert.equal(await refused.ended, 1);
  assert.match(refused.stderr, /in use by local from 127\.0\.0\.1:\d+ with image\.img, for \d+ s/);
  const other = await noise(join(server.folder, "other.img"), SIZE);
  const wrong = share(t, server, other, { args: ["--takeover", "--name", "image.img"] });
  assert.equal(await wrong.ended, 1);
  assert.ok(sharing.running);
  share(t, server, image, { line, args: ["--takeover"] });
  assert.equal(await sharing.ended, 0);
  await whole();
});

test("a sharer whose file was changed meanwhile says so and goes", async (t) => {
  const { server, image, line, sharing } = await reading(t, "unix:");
  await noise(image, SIZE);
  line.cut();
  assert.equal(await sharing.ended, 1);
  assert.match(sharing.stderr, /image\.img was changed since it was shared/);
  assert.equal((await server.session("0")).state, "held");
});

test("a slow line is not taken for a dead one", async (t) => {
  const server = await serve(t, { 0: { device: "unix:", silence: 2 } });
  const image = await noise(join(server.folder, "image.img"), 2 * MIB);
  // One reply of 2 MiB takes 8 s.
  const line = await lineTo(t, server, { rate: 2_000_000 });
  const sharing = share(t, server, image, { line });
  const session = await server.attached("0");
  assert.equal(await hashDevice(server, session), await sha256(image));
  assert.doesNotMatch(sharing.stderr + server.program.stderr, /lost|held/);
});

test("when the hold has passed the sharer gives up and the device is gone", async (t) => {
  const { server, line, sharing } = await reading(t, "unix:", { hold: 3, silence: 2 });
  line.silence();
  await server.detached("0");
  await sharing.says(/gave up/);
  assert.equal(await sharing.ended, 1);
  line.restore();
  await waitFor("nobody came back", async () => (await server.session("0")) === null);
});
