// Browsers driven over classic WebDriver (https://www.w3.org/TR/webdriver2/): Chromium and WebKit.
// Unlike a DevTools client, chromedriver leaves the page's network traffic alone and so its speed.

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Background, family, freePort, waitFor } from "./process.mjs";

// Those of the background would look up hosts of the internet at every start.
const CHROMIUM_ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** A name of this machine that browsers don't trust as they trust localhost: pages there are no secure context. */
export const INSECURE_NAME = "insecure.test";

/** Chromium has no narrower windows than of 500 pixels, but narrower viewports. @type {Sizing} */
const sizeOfViewport = (width, height) => {
  const params = { width, height, deviceScaleFactor: 1, mobile: false };
  return ["/goog/cdp/execute", { cmd: "Emulation.setDeviceMetricsOverride", params }];
};

/** WebKit's driver knows windows alone. @type {Sizing} */
const sizeOfWindow = (width, height) => ["/window/rect", { x: 0, y: 0, width, height }];

/** GTK's style, not the page's: with a toolbar of common size a window could not be as narrow as a phone. */
const TINY_TOOLBAR = "* { min-width: 0; padding: 0; margin: 0; border: 0; font-size: 1px; }";

const MINI_BROWSER = "/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser";

/** @typedef {(width: number, height: number) => [path: string, body: unknown]} Sizing the command that does it */

/**
 * @param {{profile?: string, dark?: boolean}} [options] a profile that outlives the browser; whether pages are to be dark
 * @returns {Promise<Browser>}
 */
export async function chromium({ profile: kept, dark = false } = {}) {
  const profile = kept ?? (await mkdtemp(join(tmpdir(), "nbd-proxy-chromium-")));
  const resolve = `--host-resolver-rules=MAP ${INSECURE_NAME} 127.0.0.1`;
  const scheme = `--blink-settings=preferredColorScheme=${dark ? 0 : 1}`;
  const args = [...CHROMIUM_ARGUMENTS, resolve, scheme, `--user-data-dir=${profile}`];
  const capabilities = {
    acceptInsecureCerts: true,
    "goog:chromeOptions": { binary: "/usr/bin/chromium", args },
  };
  const browser = await start("chromedriver", capabilities, process.env, sizeOfViewport);
  if (!kept) browser.onClosed(() => rm(profile, { recursive: true, force: true, maxRetries: 5 }));
  return browser;
}

/**
 * @param {{dark?: boolean}} [options] whether pages are to be dark
 * @returns {Promise<Browser>}
 */
export async function webkit({ dark = false } = {}) {
  const settings = await mkdtemp(join(tmpdir(), "nbd-proxy-webkit-"));
  await mkdir(join(settings, "gtk-3.0"));
  await writeFile(join(settings, "gtk-3.0/gtk.css"), TINY_TOOLBAR);
  const screen = new Background("Xvfb", [
    "-displayfd",
    "1",
    "-screen",
    "0",
    "1280x1024x24",
    "-nolisten",
    "tcp",
  ]);
  const [, display] = await screen.says(/^(\d+)\n/);
  const options = { "webkitgtk:browserOptions": { binary: MINI_BROWSER, args: ["--automation"] } };
  const env = {
    ...process.env,
    DISPLAY: `:${display}`,
    GDK_BACKEND: "x11",
    GTK_THEME: dark ? "Adwaita:dark" : "Adwaita",
    XDG_CONFIG_HOME: settings,
    LIBGL_ALWAYS_SOFTWARE: "1",
  };
  const browser = await start("WebKitWebDriver", options, env, sizeOfWindow);
  browser.onClosed(() => screen.stop());
  browser.onClosed(() => rm(settings, { recursive: true, force: true }));
  return browser;
}

/**
 * @param {string} driver
 * @param {Record<string, unknown>} capabilities
 * @param {NodeJS.ProcessEnv} env
 * @param {Sizing} sizing
 */
async function start(driver, capabilities, env, sizing) {
  const port = await freePort();
  const program = new Background(driver, [`--port=${port}`], { env });
  const base = `http://127.0.0.1:${port}`;
  const ready = waitFor(
    `${driver} is ready`,
    async () => (await call("GET", `${base}/status`)).ready,
  );
  ready.catch(() => {});
  await Promise.race([ready, program.mustRun()]);
  const session = await call("POST", `${base}/session`, {
    capabilities: { alwaysMatch: capabilities },
  });
  return new Browser(program, `${base}/session/${session.sessionId}`, sizing);
}

/** @param {string} method @param {string} url @param {unknown} [body] */
async function call(method, url, body) {
  const response = await fetch(url, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const { value } = /** @type {{value: any}} */ (await response.json());
  if (!response.ok) throw new Error(`${method} ${url}: ${value.error}: ${value.message}`);
  return value;
}

class Browser {
  /** @type {(() => unknown)[]} */
  #closed = [];
  #queue = Promise.resolve();

  /** @param {Background} program @param {string} session @param {Sizing} sizing */
  constructor(program, session, sizing) {
    this.program = program;
    this.session = session;
    this.sizing = sizing;
  }

  /** @param {() => unknown} action */
  onClosed(action) {
    this.#closed.push(action);
  }

  /**
   * @param {string} url
   * @param {"tab" | "window"} [type] of windows, several are in sight at once
   * @returns {Promise<Tab>}
   */
  async open(url, type = "tab") {
    // The current window may be one that was closed.
    const [any] = await call("GET", `${this.session}/window/handles`);
    const { handle } = await this.within(any, (send) => send("POST", "/window/new", { type }));
    const tab = new Tab(this, handle);
    await tab.go(url);
    return tab;
  }

  /**
   * Runs commands with one window as the current one, which the protocol has one of.
   *
   * @template T
   * @param {string} handle
   * @param {(send: (method: string, path: string, body?: unknown) => Promise<any>) => Promise<T>} commands
   * @returns {Promise<T>}
   */
  async within(handle, commands) {
    const turn = this.#queue.then(async () => {
      await call("POST", `${this.session}/window`, { handle });
      return commands((method, path, body) => call(method, this.session + path, body));
    });
    this.#queue = turn.then(
      () => {},
      () => {},
    );
    return turn;
  }

  /** @param {NodeJS.Signals} signal to all of the browser's processes */
  async signal(signal) {
    const [, ...browser] = await family(this.program.child.pid);
    for (const pid of browser) process.kill(pid, signal);
  }

  async close() {
    await call("DELETE", this.session).catch(() => {});
    await this.program.stop();
    for (const action of this.#closed) await action();
  }
}

/** One page. */
class Tab {
  /** @param {Browser} browser @param {string} handle */
  constructor(browser, handle) {
    this.browser = browser;
    this.handle = handle;
  }

  /** @param {string} url */
  async go(url) {
    await this.browser.within(this.handle, (send) => send("POST", "/url", { url }));
    // WebKit's driver may answer before the scripts of the page have run.
    const loaded = 'location.protocol !== "about:" && document.readyState === "complete"';
    await waitFor(`${url} is loaded`, () => this.evaluate(loaded));
  }

  /**
   * @param {string} expression of JavaScript, may be a promise
   * @returns {Promise<any>} its value, through JSON
   */
  async evaluate(expression) {
    const body = { script: `return (${expression});`, args: [] };
    return this.browser.within(this.handle, (send) => send("POST", "/execute/sync", body));
  }

  /** @param {string} selector of a file input @param {string} path */
  async choose(selector, path) {
    await this.#onElement(selector, "value", { text: path });
  }

  /** @param {string} selector */
  async click(selector) {
    await this.#onElement(selector, "click", {});
  }

  /**
   * WebDriver has code points for keys without a character.
   *
   * @param {string} key
   * @param {string} [held] another one, meanwhile
   */
  async press(key, held = "") {
    const down = [...held, key].map((value) => ({ type: "keyDown", value }));
    const up = [key, ...held].map((value) => ({ type: "keyUp", value }));
    const actions = [...down, ...up];
    const body = { actions: [{ type: "key", id: "keyboard", actions }] };
    await this.browser.within(this.handle, (send) => send("POST", "/actions", body));
  }

  /** @param {number} width @param {number} height in CSS pixels, of the page or of its window */
  async resize(width, height) {
    const [path, body] = this.browser.sizing(width, height);
    await this.browser.within(this.handle, (send) => send("POST", path, body));
    await waitFor(`${width} pixels`, () => this.evaluate(`innerWidth === ${width}`));
  }

  async close() {
    await this.browser.within(this.handle, (send) => send("DELETE", "/window"));
  }

  /** @param {string} selector @param {string} verb @param {unknown} body */
  async #onElement(selector, verb, body) {
    await this.browser.within(this.handle, async (send) => {
      const element = await send("POST", "/element", { using: "css selector", value: selector });
      await send("POST", `/element/${Object.values(element)[0]}/${verb}`, body);
    });
  }
}
