// Chromium without a debugger's Network domain, which would copy every frame, and windows of it, all of them in sight. Each
// line of standard input is a JSON array, a verb and its arguments; each line of standard output is {value} or {error}.

import { createInterface } from "node:readline";
import { chromium } from "../tests/lib/webdriver.mjs";

const browser = await chromium();
/** @type {Map<number, Awaited<ReturnType<typeof browser.open>>>} */
const windows = new Map();
let opened = 0;
const verbs = {
  /** @param {string} url */
  async open(url) {
    opened += 1;
    windows.set(opened, await browser.open(url, "window"));
    return opened;
  },
  /** @param {number} id */
  async close(id) {
    await windows.get(id)?.close();
    windows.delete(id);
  },
  /** @param {number} id @param {string} selector @param {string} path */
  choose: (id, selector, path) => windows.get(id)?.choose(selector, path),
  /** @param {number} id @param {string} selector */
  click: (id, selector) => windows.get(id)?.click(selector),
  /** @param {number} id @param {string} expression */
  evaluate: (id, expression) => windows.get(id)?.evaluate(expression),
};

/** @param {string} line */
async function obey(line) {
  const [verb, ...words] = JSON.parse(line);
  // @ts-expect-error: chromium.py says the words that each verb takes.
  return (await verbs[/** @type {keyof typeof verbs} */ (verb)](...words)) ?? null;
}

try {
  for await (const line of createInterface({ input: process.stdin })) {
    const answer = await obey(line).then(
      (value) => ({ value }),
      (error) => ({ error: String(error) }),
    );
    console.log(JSON.stringify(answer));
  }
} finally {
  await browser.close();
}
