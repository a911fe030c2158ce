// An operating system that boots from the session's socket while the link of its disk is lost, three times.

import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256 } from "../lib/images.mjs";
import { LIVE, liveIso } from "../lib/live.mjs";
import { powerOn } from "../lib/machine.mjs";
import { serve } from "../lib/program.mjs";
import { held, lineTo, resumed, share } from "../lib/share.mjs";

const MIB = 1 << 20;
/** How long a phase of the machine may take, in seconds: it runs without KVM. */
const PATIENCE = 240;

test("an operating system boots through three losses, and finds every byte of its disk", async (t) => {
  const iso = await liveIso();
  const server = await serve(t, { 0: { device: "unix:", silence: 3 } });
  const line = await lineTo(t, server, { rate: 80_000_000, delay: 2 });
  const first = share(t, server, iso, { line });
  const session = await server.attached("0");

  const machine = powerOn(t, session);
  const started = machine.says(LIVE.kernel, PATIENCE).then(() => "the kernel runs");
  const cut = line.cutAfter(6 * MIB).then(() => "the boot loader loads it");
  assert.equal(await Promise.race([cut, started]), "the boot loader loads it");
  await resumed(server, 1);

  await started;
  first.child.kill("SIGKILL");
  await held(server);
  await machine.says(LIVE.mounting, PATIENCE);
  share(t, server, iso, { line });
  await resumed(server, 2);

  await machine.says(LIVE.checked(1), PATIENCE);
  line.silence();
  await held(server);
  line.restore();
  await resumed(server, 3);

  const [, disk] = await machine.says(LIVE.disk, PATIENCE);
  assert.equal(disk, await sha256(iso));
  assert.equal(await machine.ended, 0);
  assert.match(machine.stdout, LIVE.right);
  assert.doesNotMatch(machine.stdout, /error/i, "the kernel saw none");
  assert.equal((await server.session("0")).since, session.since, "the same session");
});
