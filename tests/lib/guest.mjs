// A guest with the kernel's NBD driver (tests/vm), whose programs are this machine's own.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Background, freePort, run, waitFor } from "./process.mjs";
import { PROGRAM, ROOT } from "./program.mjs";

const VM = join(ROOT, "tests/vm");

/** Where a program in the guest listens, so that the host reaches it. */
const GUEST_PORTS = [8000, 8001];

/** How long a command in the guest may take: it runs without KVM, some 5 to 50 times slower. */
const PATIENCE_SECONDS = 180;

/** A running guest. */
export class Guest {
  /**
   * @param {Background} machine
   * @param {string} share folder of both, `/share` in the guest
   * @param {number} agent
   * @param {Map<number, number>} ports of the host by port of the guest
   */
  constructor(machine, share, agent, ports) {
    this.machine = machine;
    this.share = share;
    this.agent = agent;
    this.ports = ports;
  }

  /** Boots one, which takes some seconds. */
  static async boot() {
    const share = await mkdtemp(join(tmpdir(), "nbd-proxy-guest-"));
    const agent = await freePort();
    const ports = new Map();
    for (const port of GUEST_PORTS) ports.set(port, await freePort());
    const forwards = [...ports, [2222, agent]].flatMap(([guest, host]) => [
      "-p",
      `${host}:${guest}`,
    ]);
    const options = ["-R", "-s", share, "-m", "1536", "-t", "1800", ...forwards];
    const machine = new Background(join(VM, "run.sh"), [...options, join(VM, "agent.sh")]);
    await machine.says(/agent: ready/, PATIENCE_SECONDS);
    return new Guest(machine, share, agent, ports);
  }

  /**
   * Runs a shell command in the guest.
   *
   * @param {string} command
   * @returns {Promise<{status: number, stdout: string}>} with standard error in its output
   */
  async try(command) {
    const { status, stdout } = await run(join(VM, "guest.sh"), [String(this.agent), command]);
    if (status === 125) throw new Error(`the guest went away\n${this.machine.stdout.slice(-4000)}`);
    return { status, stdout };
  }

  /**
   * Runs a shell command in the guest that must succeed.
   *
   * @param {string} command
   * @returns {Promise<string>} what it printed, trimmed
   */
  async run(command) {
    const { status, stdout } = await this.try(command);
    if (status !== 0) throw new Error(`in the guest: ${command}: exit status ${status}\n${stdout}`);
    return stdout.trim();
  }

  /**
   * @param {string} what
   * @param {string} command of the shell, polled until it succeeds
   */
  async waitFor(what, command) {
    const succeeded = async () => {
      const { status, stdout } = await this.try(command);
      if (status === 0) return true;
      throw new Error(`exit status ${status}: ${stdout}`);
    };
    await waitFor(`in the guest: ${what}`, succeeded, PATIENCE_SECONDS);
  }

  /** @param {number} port of the guest @returns {string} where this machine reaches it */
  address(port) {
    return `http://127.0.0.1:${this.ports.get(port)}/`;
  }

  async stop() {
    await this.try("touch /run/off").catch(() => {});
    await this.machine.ended;
    await rm(this.share, { recursive: true, force: true });
  }
}

/**
 * One setting of nbd-proxy in a guest: a folder with its configuration, runtime folder and a recording state hook.
 */
export class Setting {
  /** @param {Guest} guest @param {string} folder in the guest */
  constructor(guest, folder) {
    this.guest = guest;
    this.folder = folder;
    this.env = `NBD_PROXY_CONFIG=${folder}/config.json RUNTIME_DIRECTORY=${folder}/run`;
  }

  /**
   * @param {Guest} guest
   * @param {Record<string, Record<string, unknown>>} configurations
   */
  static async make(guest, configurations) {
    const folder = await guest.run("mktemp -d");
    const setting = new Setting(guest, folder);
    const hook = `${folder}/state`;
    const all = Object.entries(configurations).map(([name, value]) => [
      name,
      { "state-hook": hook, ...value },
    ]);
    await setting.#write(
      "config.json",
      JSON.stringify({ configurations: Object.fromEntries(all) }),
    );
    // What a hook sees of the device is part of its record: the size in sectors, and that it can be read.
    const record = `{ echo "$@"; env | grep ^NBD_PROXY_ | sort
      echo "sectors=$(cat /sys/block/\${NBD_PROXY_DEVICE#/dev/}/size)"
      [ "$1" = stop ] || echo "first=$(head -c 512 "$NBD_PROXY_DEVICE" | sha256sum | cut -c1-64)"
      echo; } >>${folder}/calls`;
    await setting.#write("state", `#!/bin/sh\n${record}\n`);
    await guest.run(`chmod +x ${hook}; mkdir ${folder}/run`);
    return setting;
  }

  /** @param {string} name @param {string} content */
  async #write(name, content) {
    const encoded = Buffer.from(content).toString("base64");
    await this.guest.run(`echo ${encoded} | base64 -d >${this.folder}/${name}`);
  }

  /**
   * Starts a program in the background; its messages go to a file.
   *
   * @param {string} command
   * @returns {Promise<Job>}
   */
  async start(command) {
    const log = `${this.folder}/log.${Math.random().toString(36).slice(2)}`;
    const pid = await this.guest.run(`${this.env} setsid ${command} >${log} 2>&1 & echo $!`);
    return new Job(this.guest, Number(pid), log);
  }

  /**
   * Starts `nbd-proxy serve` where the host reaches it.
   *
   * @param {number} port of the guest
   * @returns {Promise<Job & {address: string, url: URL, token: string}>}
   */
  async serve(port) {
    // It listens on loopback only, as it does by default; a relay stands in for the network.
    await this.guest.run(
      `pgrep -f 'TCP-LISTEN:${port},' >/dev/null || (setsid socat TCP-LISTEN:${port},bind=10.0.2.15,fork,reuseaddr \
       TCP:127.0.0.1:${port} >/dev/null 2>&1 &)`,
    );
    const job = await this.start(`${PROGRAM} serve --listen 127.0.0.1:${port}`);
    const [, token] = await job.says(/^http:\/\/\S+#token=(\S+)$/m);
    const url = new URL(this.guest.address(port));
    return Object.assign(job, { url, token, address: `${url}#token=${token}` });
  }

  /**
   * @returns {Promise<{action: string, name: string, env: Record<string, string>}[]>} the hook's calls so far
   */
  async calls() {
    const text = await this.guest.run(`cat ${this.folder}/calls 2>/dev/null || true`);
    return text
      .split("\n\n")
      .filter((block) => block !== "")
      .map((block) => {
        const [words, ...lines] = block.trim().split("\n");
        const [action, name] = words.split(" ");
        const env = Object.fromEntries(lines.map((line) => line.split(/=(.*)/s).slice(0, 2)));
        return { action, name, env };
      });
  }
}

/** A program in the background of a guest. */
class Job {
  /** @param {Guest} guest @param {number} pid @param {string} log */
  constructor(guest, pid, log) {
    this.guest = guest;
    this.pid = pid;
    this.log = log;
  }

  /** @returns {Promise<string>} what it printed so far */
  async output() {
    return this.guest.run(`cat ${this.log}`);
  }

  /** @param {RegExp} pattern */
  async says(pattern) {
    return waitFor(
      `in the guest: it says ${pattern}`,
      async () => {
        const text = await this.output();
        const match = pattern.exec(text);
        if (match) return match;
        throw new Error(text);
      },
      PATIENCE_SECONDS,
    );
  }

  /** @param {string} signal */
  async kill(signal) {
    await this.guest.run(`kill -${signal} ${this.pid}`);
  }

  async ended() {
    await this.guest.waitFor("the program ends", `! kill -0 ${this.pid} 2>/dev/null`);
  }
}
