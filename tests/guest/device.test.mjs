// The kernel's NBD device in a guest: how it ends, what is left when it does not, and whom it must not harm.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { FarLink } from "../lib/far-link.mjs";
import { Guest, Setting } from "../lib/guest.mjs";
import { atEnd, waitFor } from "../lib/process.mjs";
import { PROGRAM, ROOT } from "../lib/program.mjs";

/** What nbdkit serves where the bytes don't matter: each 8 bytes are their own offset. */
const PATTERN = "pattern size=4M";
const PATTERN_HASH =
  "nbdkit -r pattern size=4M --run 'nbdcopy \"$uri\" -' | sha256sum | cut -d' ' -f1";

/** @type {Guest} */
let guest;
before(async () => {
  guest = await Guest.boot();
});
after(() => guest?.stop());

/** @param {Setting} setting @param {number} count of the hook's calls, the last of them complete */
async function called(setting, count) {
  const complete = `[ "$(grep -c '^$' ${setting.folder}/calls)" -ge ${count} ]`;
  await guest.waitFor(`${count} calls of the hook`, complete);
  return (await setting.calls()).map((call) => call.action);
}

/** @param {Setting} setting @param {string} [plugin] of nbdkit */
async function attached(setting, plugin = PATTERN) {
  const fed = await setting.feed("0", plugin);
  await called(setting, 1).catch(async (error) => {
    assert.fail(`${error.message}\n${await fed.program.output()}`);
  });
  return fed;
}

/**
 * Has nbd-client attach /dev/nbd0 to an image of 3 MiB until the test ends.
 *
 * @param {import("node:test").TestContext} t
 * @param {Setting} setting
 * @param {string} mode
 */
async function takenByAnother(t, setting, mode) {
  const socket = `${setting.folder}/other.sock`;
  await setting.start(`nbdkit -f -r -U ${socket} pattern size=3M`);
  await guest.waitFor("nbdkit listens", `[ -S ${socket} ]`);
  await guest.run(`nbd-client -unix ${socket} /dev/nbd0 ${mode === "ioctl" ? "-L" : ""}`);
  atEnd(t, () => guest.run("nbd-client -d /dev/nbd0"));
  await guest.waitFor("the other device is there", `[ "$(cat /sys/block/nbd0/size)" = 6144 ]`);
}

/**
 * Has a session end in order. For detaching its device the program has 300 ms, and the emulated processor may get none of
 * a busy machine's for so long: then the program says so, and `end` may try again, twice.
 *
 * @param {() => Promise<void>} end
 */
async function inOrder(end) {
  for (let tries = 3; ; tries -= 1) {
    try {
      return await end();
    } catch (error) {
      if (tries === 1 || !/detaching .* did not end in time/.test(String(error))) throw error;
      await guest.waitFor("the device is free", `[ "$(cat /sys/block/nbd0/size)" = 0 ]`);
    }
  }
}

for (const mode of ["netlink", "ioctl"]) {
  const nbd0 = { 0: { "nbd-device": "/dev/nbd0", attach: mode } };

  for (const end of ["SIGTERM", "SIGINT", "end of input"]) {
    test(`${mode}: ${end} runs the stop hook, frees the device and is exit status 0`, (t) =>
      inOrder(async () => {
        const setting = await Setting.make(t, guest, nbd0);
        const { program, peer } = await attached(setting);
        assert.equal(await guest.hash("/dev/nbd0"), await guest.run(PATTERN_HASH));
        if (end === "end of input") await peer.kill("KILL");
        else await program.kill(end.slice(3));
        assert.equal(await program.ended(), 0, await program.output());
        assert.equal(await guest.sectors("/dev/nbd0"), 0);
        const [start, stop] = await setting.calls();
        assert.deepEqual([start.action, stop.action], ["start", "stop"]);
        assert.equal(stop.env.sectors, "8192");
      }));
  }

  test(`${mode}: after SIGKILL the next start runs stop once, frees the device and goes on`, async (t) => {
    const setting = await Setting.make(t, guest, nbd0);
    const killed = await attached(setting);
    await killed.program.kill("KILL");
    await killed.program.ended();
    const { program } = await setting.feed("0", PATTERN);
    assert.deepEqual(await called(setting, 3), ["start", "stop", "start"]);
    assert.equal((await setting.calls())[1].env.NBD_PROXY_REASON, "recovered");
    assert.equal(await guest.hash("/dev/nbd0"), await guest.run(PATTERN_HASH));
    await program.kill("TERM");
    assert.equal(await program.ended(), 0, await program.output());
    assert.equal(await guest.sectors("/dev/nbd0"), 0);
  });

  test(`${mode}: a reader of a dead link gets an error and nobody hangs`, async (t) => {
    const setting = await Setting.make(t, guest, nbd0);
    const { program, peer, server } = await attached(setting);
    await server.kill("STOP");
    const reader = await setting.start("dd if=/dev/nbd0 of=/dev/null bs=64k skip=16 iflag=direct");
    await guest.waitFor("a read is outstanding", `grep -q '[1-9]' /sys/block/nbd0/inflight`);
    await peer.kill("KILL");
    assert.equal(await program.ended(), 0, await program.output());
    assert.notEqual(await reader.ended(), 0);
    assert.equal(await guest.sectors("/dev/nbd0"), 0);
  });
}

test("serve: after SIGTERM a new server has the device for a new session", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const image = `${setting.folder}/image`;
  await guest.run(`head -c 2M /dev/urandom >${image}`);
  const share = `${PROGRAM} share ${image} http://127.0.0.1:8000/`;
  const first = await setting.serve(8000);
  const before = await setting.start(`${share}#token=${first.token}`);
  await first.attached("0");
  await called(setting, 1);
  await first.program.kill("TERM");
  assert.equal(await first.program.ended(), 0);
  await before.ended();

  const second = await setting.serve(8000);
  await setting.start(`${share}#token=${second.token}`);
  await second.attached("0");
  assert.deepEqual(await called(setting, 3), ["start", "stop", "start"]);
  assert.equal((await setting.calls())[1].env.NBD_PROXY_REASON, "shutdown");
  assert.equal(await guest.hash("/dev/nbd0"), await guest.hash(image));
});

test("an image of odd length is padded with zeros to the sector", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const image = `${setting.folder}/odd`;
  await guest.run(`head -c 1000001 /dev/urandom >${image}`);
  const { program } = await attached(setting, `file ${image}`);
  assert.equal(await guest.sectors("/dev/nbd0"), 1_000_448 / 512);
  await guest.run(
    `truncate -s 1000448 ${image}.padded; dd if=${image} of=${image}.padded conv=notrunc status=none`,
  );
  await guest.run(`cmp /dev/nbd0 ${image}.padded`);
  await program.kill("TERM");
  await program.ended();
});

test("two configurations at once, each with a process of its own", async (t) => {
  const setting = await Setting.make(t, guest, {
    0: { "nbd-device": "/dev/nbd0" },
    1: { "nbd-device": "/dev/nbd1" },
  });
  const first = await setting.feed("0", "pattern size=1M");
  const second = await setting.feed("1", "pattern size=2M");
  await called(setting, 2);
  assert.equal(await guest.sectors("/dev/nbd0"), 2048);
  assert.equal(await guest.sectors("/dev/nbd1"), 4096);
  await first.program.kill("TERM");
  assert.equal(await first.program.ended(), 0);
  assert.equal(await guest.sectors("/dev/nbd0"), 0);
  await guest.hash("/dev/nbd1");
  await second.program.kill("TERM");
  assert.equal(await second.program.ended(), 0);
});

for (const mode of ["netlink", "ioctl"]) {
  test(`${mode}: a device that somebody else attached is refused and unharmed`, async (t) => {
    const setting = await Setting.make(t, guest, {
      0: { "nbd-device": "/dev/nbd0", attach: mode },
    });
    await takenByAnother(t, setting, mode);
    const before = await guest.hash("/dev/nbd0");

    const { program } = await setting.feed("0", PATTERN);
    assert.equal(await program.ended(), 1);
    assert.match(await program.output(), /\/dev\/nbd0/);
    assert.deepEqual(await setting.calls(), []);
    assert.equal(await guest.sectors("/dev/nbd0"), 6144);
    assert.equal(await guest.hash("/dev/nbd0"), before);
  });
}

test("the first free device is found, and one that is taken is passed by", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "nbd:" } });
  await takenByAnother(t, setting, "netlink");
  const { program } = await attached(setting);
  const [start] = await setting.calls();
  assert.match(start.env.NBD_PROXY_DEVICE, /^\/dev\/nbd[1-9]\d*$/);
  await program.kill("TERM");
  assert.equal(await program.ended(), 0);
});

test("a leftover that is mounted is refused, naming the mount, and freed once it is not", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const [image, mount] = [`${setting.folder}/fs`, `${setting.folder}/mount`];
  await guest.run(`truncate -s 8M ${image} && mkfs.ext4 -q ${image} && mkdir ${mount}`);
  const killed = await attached(setting, `file ${image}`);
  await guest.run(`mount -t ext4 -o ro,noload /dev/nbd0 ${mount}`);
  await killed.program.kill("KILL");
  await killed.program.ended();

  const refused = await setting.feed("0", PATTERN);
  assert.equal(await refused.program.ended(), 1);
  assert.ok((await refused.program.output()).includes(mount));

  await guest.run(`umount ${mount}`);
  const { program } = await setting.feed("0", PATTERN);
  await guest.waitFor("the new image", `[ "$(cat /sys/block/nbd0/size)" = 8192 ]`);
  await program.kill("TERM");
  assert.equal(await program.ended(), 0, await program.output());
});

test("disconnecting the kernel's device ends the session in order", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const { program } = await attached(setting);
  await guest.run("nbd-client -d /dev/nbd0");
  assert.equal(await program.ended(), 0, await program.output());
  assert.deepEqual(await called(setting, 2), ["start", "stop"]);
});

test("eject refuses a mounted device naming the mount, and --force says that it drains", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const [image, mount] = [`${setting.folder}/fs`, `${setting.folder}/mount`];
  await guest.run(`truncate -s 8M ${image} && mkfs.ext4 -q ${image} && mkdir ${mount}`);
  const server = await setting.serve(8000);
  const share = await setting.start(
    `${PROGRAM} share ${image} 'http://127.0.0.1:8000/#token=${server.token}'`,
  );
  await server.attached("0");
  await called(setting, 1);
  await guest.run(`mount -t ext4 -o ro,noload /dev/nbd0 ${mount}`);

  const refused = await guest.try(`${setting.env} ${PROGRAM} eject 0`);
  assert.equal(refused.status, 1);
  assert.ok(refused.stdout.includes(mount), refused.stdout);
  assert.equal((await server.session("0")).state, "attached");

  const forced = await guest.try(`${setting.env} ${PROGRAM} eject 0 --force`);
  assert.equal(forced.status, 0, forced.stdout);
  const [, reasons] = forced.stdout.split("once this has ended: ");
  assert.ok(reasons?.includes(mount), forced.stdout);
  const { state, draining_for } = await server.session("0");
  assert.equal(state, "draining");
  assert.ok(draining_for.join().includes(mount), draining_for.join());
  await guest.run(`umount ${mount}`);
  await server.detached("0");
  await share.ended();
});

test("serving again while the old mount exists is refused, and works once it is gone", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const [image, mount] = [`${setting.folder}/fs`, `${setting.folder}/mount`];
  await guest.run(`truncate -s 8M ${image} && mkfs.ext4 -q ${image} && mkdir ${mount}`);
  const server = await setting.serve(8000);
  const share = `${PROGRAM} share ${image} 'http://127.0.0.1:8000/#token=${server.token}'`;
  const first = await setting.start(share);
  await server.attached("0");
  await guest.run(`mount -t ext4 -o ro,noload /dev/nbd0 ${mount}`);
  atEnd(t, () => guest.try(`umount ${mount}`));
  await first.kill("INT");
  await first.ended();
  await waitFor("it drains", async () => (await server.session("0")).state === "draining");

  const second = await setting.start(share);
  assert.equal(await second.ended(), 1);
  assert.match(await second.output(), /draining|in use/);
  assert.equal(await guest.run(`grep -c ${mount} /proc/mounts`), "1");

  await guest.run(`umount ${mount}`);
  await server.detached("0");
  const third = await setting.start(share);
  await server.attached("0");
  assert.equal(await guest.hash("/dev/nbd0"), await guest.hash(image));
  await third.kill("INT");
  assert.equal(await third.ended(), 0, await third.output());
});

test("a reader in a row has what fills 50 ms at 1000 Mbit/s on its way", async (t) => {
  const product = (1e9 * 0.05) / 8;
  // The emulated processor takes some MB/s, so the line is slower, and longer: what it holds is the same.
  const rate = 3e6;
  const roundTrip = (product / rate) * 1000;
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const server = await setting.serve(8000);
  const far = new FarLink(t, server, { size: 1 << 28, roundTrip, rate });
  await server.attached("0");
  await setting.start("dd if=/dev/nbd0 of=/dev/null bs=1M");
  await waitFor(`${product} bytes are on their way`, () => far.most >= product, 60);
  t.diagnostic(`${far.most} bytes at most`);
});

test("a USB gadget's hold on the device counts as use", async (t) => {
  const gadget = `${ROOT}/tests/vm/gadget.sh`;
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const image = `${setting.folder}/disk`;
  await guest.run(`head -c 4M /dev/urandom >${image}`);
  const server = await setting.serve(8000);
  const address = `http://127.0.0.1:8000/#token=${server.token}`;
  await setting.start(`${PROGRAM} share ${image} '${address}'`);
  await server.attached("0");
  const drive = await guest.run(`${gadget} up /dev/nbd0`);
  await guest.run(`cmp ${drive} ${image}`);
  const refused = await guest.try(`${setting.env} ${PROGRAM} eject 0`);
  assert.equal(refused.status, 1);
  assert.match(refused.stdout, /gadget/i);
  await guest.run(`${gadget} down`);
  await guest.run(`${setting.env} ${PROGRAM} eject 0`);
  await server.detached("0");
});

test("the hook usb-gadget gives each image a drive of its own, which a host reads", async (t) => {
  const hook = `${ROOT}/packaging/hooks/usb-gadget`;
  const setting = await Setting.make(t, guest, {
    0: { "nbd-device": "/dev/nbd0", "state-hook": hook, media: "cdrom" },
    1: { "nbd-device": "/dev/nbd1", "state-hook": hook },
  });
  await guest.run("modprobe dummy_hcd; modprobe usb-storage; modprobe sd_mod; modprobe sr_mod");
  const server = await setting.serve(8000);
  const share = async (/** @type {string} */ name) => {
    await guest.run(`head -c 4M /dev/urandom >${setting.folder}/disk${name}`);
    const address = `ws://127.0.0.1:8000/nbd/${name}#token=${server.token}`;
    await setting.start(`${PROGRAM} share ${setting.folder}/disk${name} '${address}'`);
    await server.attached(name);
  };
  // Whichever name the host gave it; opening a removable drive makes the host look for its medium.
  const shown = (/** @type {string} */ kind, /** @type {string} */ name) =>
    `for drive in /dev/${kind}*; do
      case $(readlink -f /sys/block/\${drive#/dev/}) in
        */dummy_hcd.*) cmp -s -n 4194304 $drive ${setting.folder}/disk${name} && exit ;;
      esac
    done; exit 1`;
  await share("0");
  await guest.waitFor("the host reads the CD-ROM", shown("sr", "0"));
  await share("1");
  await guest.waitFor("the host reads the drive", shown("sd", "1"));
  await guest.run(shown("sr", "0"));
  // What the start hook set up doesn't count as use.
  await guest.run(`${setting.env} ${PROGRAM} eject 0`);
  await server.detached("0");
  await guest.run(shown("sd", "1"));
  await guest.run(`${setting.env} ${PROGRAM} eject 1`);
  await server.detached("1");
  assert.equal(await guest.run("ls /sys/kernel/config/usb_gadget"), "");
});

test("check says that the kernel's device works here", async (t) => {
  const setting = await Setting.make(t, guest, { 0: { "nbd-device": "/dev/nbd0" } });
  const { status, stdout } = await guest.try(`${setting.env} ${PROGRAM} check`);
  assert.equal(status, 0, stdout);
  assert.match(stdout, /nbd/);
});
