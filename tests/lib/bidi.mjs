// Firefox driven over WebDriver BiDi (https://www.w3.org/TR/webdriver-bidi/), which it speaks without a driver program.

import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import WebSocket from "ws";
import { Background, family } from "./process.mjs";

// Without these a new profile looks up hosts of the internet.
const PREFERENCES = {
  "app.normandy.enabled": false,
  "app.update.disabledForTesting": true,
  "browser.safebrowsing.malware.enabled": false,
  "browser.safebrowsing.phishing.enabled": false,
  "browser.shell.checkDefaultBrowser": false,
  "browser.startup.page": 0,
  "datareporting.policy.dataSubmissionEnabled": false,
  "extensions.update.enabled": false,
  "network.captive-portal-service.enabled": false,
  "network.connectivity-service.enabled": false,
  "services.settings.server": "data:,",
  "toolkit.telemetry.server": "",
};

/**
 * @param {{profile?: string, dark?: boolean}} [options] a profile that outlives the browser; whether pages are to be dark
 * @returns {Promise<Browser>}
 */
export async function firefox(options = {}) {
  const kept = options.profile !== undefined;
  const profile = options.profile ?? (await mkdtemp(join(tmpdir(), "nbd-proxy-firefox-")));
  // 0 is dark, 1 is light.
  const scheme = { "layout.css.prefers-color-scheme.content-override": options.dark ? 0 : 1 };
  const lines = Object.entries({ ...PREFERENCES, ...scheme }).map(
    (entry) => `user_pref(${entry.map((v) => JSON.stringify(v)).join()});\n`,
  );
  await writeFile(join(profile, "user.js"), lines.join(""));
  const args = ["--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"];
  const program = new Background("firefox-esr", args);
  const [, address] = await program.says(/WebDriver BiDi listening on (ws:\S+)/);
  const socket = new WebSocket(`${address}/session`, { perMessageDeflate: false });
  await once(socket, "open");
  const browser = new Browser(program, socket, kept ? null : profile);
  const capabilities = { alwaysMatch: { acceptInsecureCerts: true } };
  await browser.send("session.new", { capabilities });
  return browser;
}

class Browser {
  #id = 0;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  #waiting = new Map();

  /** @param {Background} program @param {WebSocket} socket @param {string | null} profile to be deleted at the end */
  constructor(program, socket, profile) {
    this.program = program;
    this.socket = socket;
    this.profile = profile;
    socket.on("message", (data) => this.#receive(JSON.parse(String(data))));
    socket.on("error", () => {});
    socket.on("close", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("the browser went away"));
    });
  }

  /** @param {any} message */
  #receive(message) {
    const waiting = this.#waiting.get(message.id);
    if (!waiting) return;
    this.#waiting.delete(message.id);
    if (message.type === "success") waiting.resolve(message.result);
    else waiting.reject(new Error(`${message.error}: ${message.message}`));
  }

  /** @param {string} method @param {Record<string, unknown>} params @returns {Promise<any>} */
  send(method, params) {
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ id, method, params }));
    });
  }

  /** @param {string} url @returns {Promise<Tab>} */
  async open(url) {
    const { context } = await this.send("browsingContext.create", { type: "tab" });
    const tab = new Tab(this, context);
    await tab.go(url);
    return tab;
  }

  /** @param {NodeJS.Signals} signal to all of the browser's processes */
  async signal(signal) {
    for (const pid of await family(this.program.child.pid)) process.kill(pid, signal);
  }

  async close() {
    await Promise.race([this.send("browser.close", {}).catch(() => {}), this.program.ended]);
    await this.program.stop();
    if (this.profile) await rm(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** One page. */
class Tab {
  /** @param {Browser} browser @param {string} context */
  constructor(browser, context) {
    this.browser = browser;
    this.context = context;
  }

  /** @param {string} url */
  async go(url) {
    await this.browser.send("browsingContext.navigate", {
      context: this.context,
      url,
      wait: "complete",
    });
  }

  /**
   * @param {string} expression of JavaScript, may be a promise
   * @returns {Promise<any>} its value, through JSON
   */
  async evaluate(expression) {
    const { type, result, exceptionDetails } = await this.browser.send("script.evaluate", {
      expression: `(async () => JSON.stringify(await (${expression})) ?? "null")()`,
      target: { context: this.context },
      awaitPromise: true,
    });
    if (type === "exception") throw new Error(exceptionDetails.text);
    return JSON.parse(result.value);
  }

  /** @param {string} selector of a file input @param {string} path */
  async choose(selector, path) {
    const element = await this.#find(selector);
    // As a click does; or else another file of the same name would count as the same.
    await this.evaluate(`void (document.querySelector(${JSON.stringify(selector)}).value = "")`);
    await this.browser.send("input.setFiles", { context: this.context, element, files: [path] });
  }

  /** @param {string} selector */
  async click(selector) {
    const element = await this.#find(selector);
    const { context } = this;
    await this.evaluate(
      `document.querySelector(${JSON.stringify(selector)}).scrollIntoView({block: "center"})`,
    );
    const origin = { type: "element", element };
    const actions = [
      { type: "pointerMove", x: 0, y: 0, origin },
      { type: "pointerDown", button: 0 },
      { type: "pointerUp", button: 0 },
    ];
    const sources = [{ type: "pointer", id: "mouse", actions }];
    await this.browser.send("input.performActions", { context, actions: sources });
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
    const sources = [{ type: "key", id: "keyboard", actions }];
    await this.browser.send("input.performActions", { context: this.context, actions: sources });
  }

  /** @param {number} width @param {number} height in CSS pixels */
  async resize(width, height) {
    const viewport = { width, height };
    await this.browser.send("browsingContext.setViewport", { context: this.context, viewport });
  }

  async close() {
    await this.browser.send("browsingContext.close", { context: this.context });
  }

  /** @param {string} selector */
  async #find(selector) {
    const locator = { type: "css", value: selector };
    const { nodes } = await this.browser.send("browsingContext.locateNodes", {
      context: this.context,
      locator,
    });
    if (nodes.length === 0) throw new Error(`nothing on the page matches ${selector}`);
    return { sharedId: nodes[0].sharedId };
  }
}
