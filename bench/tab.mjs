// One tab of Chromium without a debugger's Network domain, which would copy every frame. Each line of standard input is
// a JSON array, a tab's method and its arguments; each line of standard output is {value} or {error}.

import { createInterface } from "node:readline";
import { chromium } from "../tests/lib/webdriver.mjs";

const browser = await chromium();
const tab = await browser.open("about:blank");
const verbs = {
  /** @param {string} url */
  go: (url) => tab.go(url),
  /** @param {string} selector @param {string} path */
  choose: (selector, path) => tab.choose(selector, path),
  /** @param {string} selector */
  click: (selector) => tab.click(selector),
  /** @param {string} expression */
  evaluate: (expression) => tab.evaluate(expression),
};

try {
  for await (const line of createInterface({ input: process.stdin })) {
    /** @type {[keyof typeof verbs, string, string]} */
    const [verb, first, second] = JSON.parse(line);
    const answer = await verbs[verb](first, second).then(
      (value) => ({ value: value ?? null }),
      (error) => ({ error: String(error) }),
    );
    console.log(JSON.stringify(answer));
  }
} finally {
  await browser.close();
}
