// nbd-proxy itself, started as its users start it.

import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import * as http from "node:http";
import * as https from "node:https";
import { createConnection } from "node:net";
import { dirname, join, resolve } from "node:path";
import { json } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { background, freePort, temporaryFolder, waitFor } from "./process.mjs";

/** The repository's root. */
export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** The program under test; `cargo xtask test` says where it built it. */
export const PROGRAM = process.env.NBD_PROXY ?? join(ROOT, "target/debug/nbd-proxy");

/** @typedef {import("node:test").TestContext} TestContext */

/**
 * Writes a configuration file into a new folder.
 *
 * @param {TestContext} t
 * @param {Record<string, Record<string, unknown>>} configurations
 * @param {Record<string, unknown>} [settings] beside `configurations`
 */
export async function configure(t, configurations, settings = {}) {
  const folder = await temporaryFolder(t);
  const runtime = join(folder, "run");
  await mkdir(runtime);
  const file = join(folder, "config.json");
  await writeFile(file, JSON.stringify({ ...settings, configurations }));
  const env = {
    ...process.env,
    RUNTIME_DIRECTORY: runtime,
    STATE_DIRECTORY: join(folder, "state"),
  };
  return { folder, file, env };
}

/**
 * Starts `nbd-proxy serve`, and waits until it listens.
 *
 * @param {TestContext} t
 * @param {Record<string, Record<string, unknown>>} configurations
 * @param {Record<string, unknown>} [settings] beside `configurations`
 * @param {string[]} [more] arguments
 */
export async function serve(t, configurations, settings, more = []) {
  return serveAt(t, "127.0.0.1:0", await configure(t, configurations, settings), more);
}

/**
 * The same at an address, with what `configure` made: where another server has been before.
 *
 * @param {TestContext} t
 * @param {string} host with its port
 * @param {Awaited<ReturnType<typeof configure>>} setting
 * @param {string[]} [more] arguments
 */
export async function serveAt(t, host, setting, more = []) {
  const { folder, file, env } = setting;
  const args = ["serve", "--config", file, "--listen", host, ...more];
  const program = background(t, PROGRAM, args, { env });
  const [address] = await program.says(/^https?:\/\/\S+$/m);
  const messages = () => program.stderr;
  const server = Object.assign(new Server(address), { program, setting, folder, messages });
  if (more.includes("--tls-self-signed")) {
    server.ca = await readFile(join(folder, "state/self-signed.crt"), "utf8");
  }
  return server;
}

/** A running `nbd-proxy serve`, as one who has its address sees it. */
export class Server {
  /** @param {string} address what it printed, to be opened in a browser */
  constructor(address) {
    this.address = address;
    this.url = new URL(address);
    /** Null where people have names: a test makes one for a program then. */
    this.token = new URLSearchParams(this.url.hash.slice(1)).get("token");
    /** @type {string | undefined} whom to trust, where it made its certificate itself */
    this.ca = undefined;
  }

  /**
   * @param {string} path below `/api/v1/`
   * @param {{method?: string, body?: string}} [init]
   * @returns {Promise<{status: number | undefined, body: any}>}
   */
  async api(path, { method = "GET", body } = {}) {
    const headers = { Authorization: `Bearer ${this.token}`, "Content-Type": "application/json" };
    const { request } = this.url.protocol === "https:" ? https : http;
    const url = new URL(`/api/v1/${path}`, this.url);
    const asking = request(url, { method, headers, ca: this.ca, agent: false }).end(body);
    const [response] = await once(asking, "response");
    const status = response.statusCode;
    return { status, body: status === 204 ? null : await json(response) };
  }

  /**
   * @param {string} name
   * @returns {Promise<any>} the configuration's session, or null
   */
  async session(name) {
    return (await this.api(`configurations/${encodeURIComponent(name)}`)).body.session;
  }

  /** @param {string} name @returns {Promise<any>} the session once its device is there */
  async attached(name) {
    return waitFor(`configuration ${name} is attached`, async () => {
      const session = await this.session(name);
      if (session?.state === "attached") return session;
      throw new Error(`its session is ${JSON.stringify(session)}`);
    });
  }

  /** @param {string} name */
  async detached(name) {
    await waitFor(`configuration ${name} is free`, async () => (await this.session(name)) === null);
  }
}

/**
 * Starts websocketd with nbd-proxy behind it, as the prototype was run.
 *
 * @param {TestContext} t
 * @param {Record<string, Record<string, unknown>>} configurations
 * @param {string[]} args of nbd-proxy
 * @param {string} [pages] the folder with the pages
 */
export async function websocketd(t, configurations, args, pages = join(ROOT, "web")) {
  const { folder, file, env } = await configure(t, configurations);
  const port = await freePort();
  const options = ["--address=127.0.0.1", `--port=${port}`, `--staticdir=${pages}`, "--binary"];
  const passed = "--passenv=PATH,NBD_PROXY_CONFIG,RUNTIME_DIRECTORY";
  const program = background(t, "websocketd", [...options, passed, PROGRAM, ...args], {
    env: { ...env, NBD_PROXY_CONFIG: file },
  });
  await waitFor("websocketd listens", () => connects(port));
  return { program, folder, address: `http://127.0.0.1:${port}/` };
}

/** @param {number} port @returns {Promise<boolean>} */
function connects(port) {
  return new Promise((answer) => {
    const socket = createConnection(port, "127.0.0.1");
    socket.once("connect", () => answer(true)).once("error", () => answer(false));
    socket.once("connect", () => socket.destroy());
  });
}
