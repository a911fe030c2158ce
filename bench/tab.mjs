// Chromium without a debugger's Network domain, which would copy every frame, and one tab in it at a time. Each line of
// standard input is a JSON array, a verb and its arguments; each line of standard output is {value} or {error}.

import { createInterface } from "node:readline";
import { chromium } from "../tests/lib/webdriver.mjs";

const browser = await chromium();
/** @type {Awaited<ReturnType<typeof browser.open>> | null} */
let tab = null;
const verbs = {
  /** @param {string} url */
  async open(url) {
    tab = await browser.open(url);
  },
  async close() {
    await tab?.close();
    tab = null;
  },
  /** @param {string} selector @param {string} path */
  choose: (selector, path) => tab?.choose(selector, path),
  /** @param {string} selector */
  click: (selector) => tab?.click(selector),
  /** @param {string} expression */
  evaluate: (expression) => tab?.evaluate(expression),
};

/** @param {string} line */
async function obey(line) {
  const [verb, first, second] = /** @type {[keyof typeof verbs, string, string]} */ (
    JSON.parse(line)
  );
  return (await verbs[verb](first, second)) ?? null;
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
