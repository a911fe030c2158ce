// Programs that a test starts and that end with it; waiting for conditions.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** How long a condition may take on a loaded machine before a test gives up. */
const PATIENCE_SECONDS = 60;

/**
 * Polls until `condition` gives something true, and gives that back.
 *
 * @template T
 * @param {string} what named in the failure
 * @param {() => T | Promise<T>} condition may throw, which counts as not yet
 * @param {number} [seconds]
 * @param {number} [pause] between two polls, in milliseconds
 */
export async function waitFor(what, condition, seconds = PATIENCE_SECONDS, pause = 50) {
  const deadline = Date.now() + seconds * 1000;
  let last;
  do {
    try {
      const value = await condition();
      if (value) return value;
      last = value;
    } catch (error) {
      last = error;
    }
    await sleep(pause);
  } while (Date.now() < deadline);
  throw new Error(`${what}: not within ${seconds} s; last: ${last}`);
}

/**
 * Runs a program to its end.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {import("node:child_process").ExecFileOptions} [options]
 * @returns {Promise<{status: number, stdout: string, stderr: string}>}
 */
export function run(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const settings = { maxBuffer: 64 << 20, encoding: "utf8", ...options };
    execFile(program, args, settings, (error, stdout, stderr) => {
      if (error && typeof error.code !== "number") reject(error);
      else
        resolve({
          status: error ? Number(error.code) : 0,
          stdout: String(stdout),
          stderr: String(stderr),
        });
    });
  });
}

/**
 * Runs a program that must succeed, and gives back its standard output.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {import("node:child_process").ExecFileOptions} [options]
 */
export async function output(program, args, options) {
  const { status, stdout, stderr } = await run(program, args, options);
  if (status !== 0)
    throw new Error(`${program} ${args.join(" ")}: exit status ${status}\n${stderr}${stdout}`);
  return stdout;
}

/**
 * @param {number | undefined} pid
 * @returns {Promise<number[]>} that process and all that it started, directly or not, and that still runs
 */
export async function family(pid) {
  const { stdout } = await run("ps", ["-e", "-o", "pid=,ppid="]);
  const processes = stdout
    .trim()
    .split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number));
  const found = pid === undefined ? [] : [pid];
  for (const parent of found) {
    found.push(...processes.filter(([, of]) => of === parent).map(([child]) => child));
  }
  return found;
}

/** A program in the background. */
export class Background {
  stdout = "";
  stderr = "";

  /**
   * @param {string} program
   * @param {string[]} args
   * @param {import("node:child_process").SpawnOptions} [options]
   */
  constructor(program, args, options = {}) {
    this.name = program;
    this.child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    this.child.stdout?.on("data", (data) => {
      this.stdout += data;
    });
    this.child.stderr?.on("data", (data) => {
      this.stderr += data;
    });
    /** @type {Promise<number | NodeJS.Signals>} exit status or signal, once the output is complete */
    this.ended = new Promise((resolve, reject) => {
      this.child.once("error", reject);
      this.child.once("close", (status, signal) => resolve(status ?? signal ?? -1));
    });
    this.ended.catch(() => {});
  }

  get running() {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /**
   * Fails as soon as the program ends, or when it could not be started.
   *
   * @returns {Promise<never>}
   */
  async mustRun() {
    const status = await this.ended;
    throw new Error(`${this.name} ended with ${status}\n${this.stderr}`);
  }

  /**
   * Waits until the output matches, failing early when the program ends first.
   *
   * @param {RegExp} pattern
   * @param {number} [seconds]
   */
  async says(pattern, seconds) {
    const found = () => pattern.exec(this.stdout) ?? pattern.exec(this.stderr);
    const what = `${this.name} says ${pattern}`;
    await waitFor(what, () => found() !== null || !this.running, seconds).catch(() => {});
    const match = found();
    if (match) return match;
    const state = this.running ? "runs on" : "has ended";
    throw new Error(`${what}: it did not and ${state}\n${this.stderr}${this.stdout.slice(-4000)}`);
  }

  /**
   * Asks the program to end, and insists where it does not listen.
   *
   * @param {NodeJS.Signals} [signal]
   */
  async stop(signal = "SIGTERM") {
    if (!this.running) return this.ended;
    this.child.kill(signal);
    const insist = setTimeout(() => this.child.kill("SIGKILL"), PATIENCE_SECONDS * 1000);
    return this.ended.finally(() => clearTimeout(insist));
  }
}

/** @type {WeakMap<TestContext, (() => unknown)[]>} */
const endings = new WeakMap();

/**
 * Does something when the test ends. What was begun last ends first, unlike with `t.after`.
 *
 * @typedef {import("node:test").TestContext} TestContext
 * @param {TestContext} t
 * @param {() => unknown} action
 */
export function atEnd(t, action) {
  const actions = endings.get(t);
  if (actions) {
    actions.push(action);
    return;
  }
  const fresh = [action];
  endings.set(t, fresh);
  t.after(async () => {
    const failures = [];
    for (const each of fresh.reverse()) {
      try {
        await each();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, "at the test's end");
  });
}

/**
 * Starts a program that is stopped when the test ends.
 *
 * @param {TestContext} t
 * @param {string} program
 * @param {string[]} args
 * @param {import("node:child_process").SpawnOptions} [options]
 */
export function background(t, program, args, options) {
  const started = new Background(program, args, options);
  atEnd(t, () => started.stop());
  return started;
}

/**
 * A new folder that goes when the test ends.
 *
 * @param {TestContext} t
 */
export async function temporaryFolder(t) {
  const folder = await mkdtemp(join(tmpdir(), "nbd-proxy-test-"));
  atEnd(t, () => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** @returns {Promise<number>} a TCP port of loopback that nobody listens on */
export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  server.close();
  await once(server, "close");
  return port;
}
