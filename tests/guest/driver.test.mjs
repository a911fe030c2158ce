// The guest itself, and on its driver what stands closest to it: crates/nbd-kernel and the kernel device.

import { join } from "node:path";
import { test } from "node:test";
import { output } from "../lib/process.mjs";
import { ROOT } from "../lib/program.mjs";

const VM = join(ROOT, "tests/vm");
const LIMIT_SECONDS = "600";

/** @param {string[]} words the script that the guest is to run, after options of run.sh */
async function runInGuest(...words) {
  await output(join(VM, "run.sh"), ["-R", "-t", LIMIT_SECONDS, ...words]);
}

/**
 * @param {string} words of cargo
 * @param {string} target whose program is wanted
 */
async function build(words, target) {
  const args = [...words.split(" "), "--quiet", "--message-format=json"];
  const lines = (await output("cargo", args, { cwd: ROOT })).trim().split("\n");
  const messages = lines.map((line) => JSON.parse(line));
  const built = messages.find((message) => message.executable && message.target.name === target);
  return built.executable;
}

test("the guest can do what the other tests take for granted", () =>
  runInGuest("-s", VM, join(VM, "selftest.sh")));

test("nbd-kernel attaches, detaches, recovers and harms nobody", async () =>
  runInGuest(await build("build -p nbd-kernel --example driver", "driver")));

test("the program's kernel device passes its unit tests, which return early without the driver", async () =>
  runInGuest(await build("test -p nbd-proxy --lib --no-run", "nbd_proxy"), "device::kernel"));
