// A guest with the kernel's NBD driver (tests/vm), whose programs are this machine's own.

import { join } from "node:path";
import { atEnd, Background, freePort, run, waitFor } from "./process.mjs";
import { PROGRAM, ROOT, Server } from "./program.mjs";

const VM = join(ROOT, "tests/vm");

/** Where a program in the guest listens, so that the host reaches it. */
const GUEST_PORTS = [8000, 8001];

/** How long a command in the guest may take: it runs without KVM, some 5 to 50 times slower. */
const PATIENCE_SECONDS = 180;

/** Between two polls, in milliseconds: each of them is a process for the emulated processor. */
const PAUSE = 200;

/** How long one may take before the guest is taken for dead. */
const COMMAND_SECONDS = 300;

/** How long the guest may take to go. */
const STOP_SECONDS = 60;

/** A running guest. */
export class Guest {
  /**
   * @param {Background} machine
   * @param {number} agent
   * @param {Map<number, number>} ports of the host by port of the guest
   */
  constructor(machine, agent, ports) {
    this.machine = machine;
    this.agent = agent;
    this.ports = ports;
  }

  /**
   * Boots one, which takes some seconds.
   *
   * @param {{systemd?: boolean}} [options] whether systemd is its first process
   */
  static async boot({ systemd = false } = {}) {
    const agent = await freePort();
    const ports = new Map();
    for (const port of GUEST_PORTS) ports.set(port, await freePort());
    const forwards = [...ports, [2222, agent]].flatMap(([guest, host]) => [
      "-p",
      `${host}:${guest}`,
    ]);
    const options = [systemd ? "-S" : "-R", "-m", "1536", "-t", "1800", ...forwards];
    const machine = new Background(join(VM, "run.sh"), [...options, join(VM, "agent.sh")]);
    try {
      await machine.says(/agent: ready/, PATIENCE_SECONDS);
    } catch (error) {
      await machine.stop();
      throw error;
    }
    return new Guest(machine, agent, ports);
  }

  /**
   * Runs a shell command in the guest.
   *
   * @param {string} command
   * @returns {Promise<{status: number, stdout: string}>} with standard error in its output
   */
  async try(command) {
    const args = [String(this.agent), command];
    const limit = { timeout: COMMAND_SECONDS * 1000 };
    const { status, stdout } = await run(join(VM, "guest.sh"), args, limit).catch((error) => {
      if (!error.killed) throw error;
      throw this.#failure(`the guest did not answer within ${COMMAND_SECONDS} s: ${command}`);
    });
    if (status === 125) throw this.#failure("the guest went away");
    return { status, stdout };
  }

  /** @param {string} what @returns {Error} with the last of the guest's console */
  #failure(what) {
    return new Error(`${what}; its console:\n${this.machine.stdout.slice(-4000)}`);
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
    await waitFor(`in the guest: ${what}`, succeeded, PATIENCE_SECONDS, PAUSE);
  }

  /** @param {string} file or device @returns {Promise<string>} SHA-256 of all of it, read anew */
  async hash(file) {
    return this.run(`echo 3 >/proc/sys/vm/drop_caches; sha256sum <${file} | cut -d' ' -f1`);
  }

  /** @param {string} device @returns {Promise<number>} its size in sectors of 512 bytes; 0 when nothing is attached */
  async sectors(device) {
    return Number(await this.run(`cat /sys/block/${device.slice("/dev/".length)}/size`));
  }

  /** @param {string} path in the guest @param {string} content */
  async write(path, content) {
    const encoded = Buffer.from(content).toString("base64");
    await this.run(`echo ${encoded} | base64 -d >${path}`);
  }

  /**
   * Makes what listens on loopback in the guest reachable from the host, standing in for a network.
   *
   * @param {number} port of the guest
   */
  async expose(port) {
    const relay = `socat TCP-LISTEN:${port},bind=10.0.2.15,fork,reuseaddr TCP:127.0.0.1:${port}`;
    await this.run(`pgrep -f '^${relay}' >/dev/null || { setsid ${relay} >/dev/null 2>&1 & }`);
  }

  /** @param {number} port of the guest @returns {string} where this machine reaches it */
  address(port) {
    return `http://127.0.0.1:${this.ports.get(port)}/`;
  }

  async stop() {
    await this.try("touch /run/off").catch(() => {});
    try {
      await waitFor("the guest ends", () => !this.machine.running, STOP_SECONDS);
    } catch (error) {
      await this.machine.stop();
      throw this.#failure(`${error}`);
    }
  }
}

/**
 * One setting of nbd-proxy in a guest: a folder with its configuration, runtime folder and a recording state hook.
 */
export class Setting {
  /** @type {Job[]} */
  #jobs = [];

  /** @param {Guest} guest @param {string} folder in the guest */
  constructor(guest, folder) {
    this.guest = guest;
    this.folder = folder;
    this.env = `NBD_PROXY_CONFIG=${folder}/config.json RUNTIME_DIRECTORY=${folder}/run STATE_DIRECTORY=${folder}/lib`;
  }

  /**
   * Makes one, what is started in it ends with the test.
   *
   * @param {import("node:test").TestContext} t
   * @param {Guest} guest
   * @param {Record<string, Record<string, unknown>>} configurations
   * @param {Record<string, unknown>} [settings] beside `configurations`
   */
  static async make(t, guest, configurations, settings = {}) {
    const folder = await guest.run("mktemp -d");
    const setting = new Setting(guest, folder);
    atEnd(t, () => setting.#end());
    const hook = `${folder}/state`;
    const all = Object.entries(configurations).map(([name, value]) => [
      name,
      { "state-hook": hook, ...value },
    ]);
    await guest.write(
      `${folder}/config.json`,
      JSON.stringify({ ...settings, configurations: Object.fromEntries(all) }),
    );
    // What a hook sees of the device is part of its record: the size in sectors, and that it can be read. The record
    // is written at once, so that nobody sees half of it.
    const record = `record=$(echo "$@"; env | grep ^NBD_PROXY_ | sort
      echo "sectors=$(cat /sys/block/\${NBD_PROXY_DEVICE#/dev/}/size)"
      [ "$1" = stop ] || echo "first=$(head -c 512 "$NBD_PROXY_DEVICE" | sha256sum | cut -c1-64)")
      printf '%s\\n\\n' "$record" >>${folder}/calls`;
    await guest.write(hook, `#!/bin/sh\n${record}\n`);
    await guest.run(`chmod +x ${hook}; mkdir ${folder}/run`);
    return setting;
  }

  /**
   * Starts a program in the background, its messages going to a file.
   *
   * @param {string} command
   * @param {string} [redirections] of its input and output
   * @returns {Promise<Job>}
   */
  async start(command, redirections = "") {
    const name = `${this.folder}/job${this.#jobs.length}`;
    const script = `${this.env} setsid ${command} >${name}.log 2>&1 ${redirections} &
      echo $! >${name}.pid
      wait $!
      echo $? >${name}.status`;
    await this.guest.write(`${name}.sh`, script);
    await this.guest.run(
      `setsid sh ${name}.sh >/dev/null 2>&1 & while [ ! -s ${name}.pid ]; do sleep 0.02; done`,
    );
    const job = new Job(this.guest, name);
    this.#jobs.push(job);
    return job;
  }

  /**
   * Starts the stdin/stdout form on two pipes, fed by nbdkit.
   *
   * @param {string} configuration
   * @param {string} nbdkit its plugin, filters and parameters
   */
  async feed(configuration, nbdkit) {
    const name = `${this.folder}/feed${this.#jobs.length}`;
    const server = await this.start(`nbdkit -f -r -U ${name}.sock ${nbdkit}`);
    await this.guest.waitFor("nbdkit listens", `[ -S ${name}.sock ]`);
    await this.guest.run(`mkfifo ${name}.in ${name}.out`);
    const peer = await this.start(`socat - UNIX-CONNECT:${name}.sock`, `>${name}.in <${name}.out`);
    const program = await this.start(`${PROGRAM} ${configuration}`, `<${name}.in >${name}.out`);
    return { program, peer, server };
  }

  /**
   * Starts `nbd-proxy serve` where the host reaches it.
   *
   * @param {number} port of the guest
   * @param {string} [args] further ones
   */
  async serve(port, args = "") {
    await this.guest.expose(port);
    const program = await this.start(`${PROGRAM} serve --listen 127.0.0.1:${port} ${args}`);
    const [, token] = await program.says(/^http:\/\/\S+#token=(\S+)$/m);
    const server = new Server(`${this.guest.address(port)}#token=${token}`);
    return Object.assign(server, { program, messages: () => program.output() });
  }

  /**
   * Starts websocketd with nbd-proxy behind it where the host reaches it.
   *
   * @param {number} port of the guest
   * @param {string} configuration
   */
  async websocketd(port, configuration) {
    await this.guest.expose(port);
    // Its SIGKILL comes 850 ms after the end otherwise: less than the emulated processor may need for the stop hook.
    const patience = "--closems=30000";
    const options = `--address=127.0.0.1 --port=${port} --staticdir=${ROOT}/web --binary ${patience}`;
    const passed = "--passenv=PATH,NBD_PROXY_CONFIG,RUNTIME_DIRECTORY";
    const program = await this.start(`websocketd ${options} ${passed} ${PROGRAM} ${configuration}`);
    const connects = `socat -u OPEN:/dev/null TCP:127.0.0.1:${port}`;
    await this.guest.waitFor("websocketd listens", connects);
    return { program, address: this.guest.address(port) };
  }

  async #end() {
    for (const job of this.#jobs.reverse()) await job.end();
    await this.guest.run(`rm -rf ${this.folder}`);
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
  /** @param {Guest} guest @param {string} name of its files */
  constructor(guest, name) {
    this.guest = guest;
    this.name = name;
  }

  /** @returns {Promise<string>} what it printed so far */
  async output() {
    return this.guest.run(`cat ${this.name}.log`);
  }

  /** @param {RegExp} pattern */
  async says(pattern) {
    const said = async () => {
      const text = await this.output();
      const match = pattern.exec(text);
      if (match) return match;
      throw new Error(text);
    };
    return waitFor(`in the guest: it says ${pattern}`, said, PATIENCE_SECONDS, PAUSE);
  }

  /** @param {string} signal */
  async kill(signal) {
    await this.guest.run(`kill -${signal} $(cat ${this.name}.pid)`);
  }

  /** Makes sure that it has ended. */
  async end() {
    const { name } = this;
    await this.guest.run(
      `[ -s ${name}.status ] || kill -CONT $(cat ${name}.pid) || true
       for signal in TERM KILL; do
         [ -s ${name}.status ] || kill -$signal $(cat ${name}.pid) || true
         for i in $(seq 100); do [ -s ${name}.status ] && break 2; sleep 0.1; done
       done`,
    );
  }

  /** @returns {Promise<number>} its exit status, once it has ended */
  async ended() {
    await this.guest.waitFor(`${this.name} ends`, `[ -s ${this.name}.status ]`);
    return Number(await this.guest.run(`cat ${this.name}.status`));
  }
}
