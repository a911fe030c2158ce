// The guest itself, and crates/nbd-kernel alone on its driver.

import { join } from "node:path";
import { test } from "node:test";
import { output } from "../lib/process.mjs";
import { ROOT } from "../lib/program.mjs";

const VM = join(ROOT, "tests/vm");
const LIMIT_SECONDS = "600";

/** @param {string[]} words the script that the guest is to run, after options of run.sh */
const runInGuest = (...words) => output(join(VM, "run.sh"), ["-R", "-t", LIMIT_SECONDS, ...words]);

/** @returns {Promise<string>} the program that tries nbd-kernel */
async function buildDriverExample() {
  const words = "build --quiet -p nbd-kernel --example driver --message-format=json";
  const messages = (await output("cargo", words.split(" "), { cwd: ROOT })).trim().split("\n");
  return messages.map((message) => JSON.parse(message)).find(({ executable }) => executable)
    .executable;
}

test("the guest can do what the other tests take for granted", () =>
  runInGuest("-s", VM, join(VM, "selftest.sh")));

test("nbd-kernel attaches, detaches, recovers and harms nobody", async () =>
  runInGuest(await buildDriverExample()));
