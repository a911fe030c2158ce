// Using the page as people do.

import assert from "node:assert/strict";
import { BROWSERS } from "./browsers.mjs";
import { atEnd, waitFor } from "./process.mjs";

/** @typedef {import("./browsers.mjs").Tab} Tab */
/** @typedef {import("./program.mjs").Server & {messages(): string | Promise<string>}} Server */

/**
 * Starts a browser that ends with the test.
 *
 * @param {import("node:test").TestContext} t
 * @param {keyof typeof BROWSERS} name
 * @param {{profile?: string, dark?: boolean}} [options]
 */
export async function browser(t, name, options) {
  const started = await BROWSERS[name](options);
  atEnd(t, () => started.close());
  return started;
}

/**
 * Opens the address that the server printed, in a new browser, and waits for the page to be ready.
 *
 * @param {import("node:test").TestContext} t
 * @param {keyof typeof BROWSERS} name
 * @param {{address: string}} server
 */
export async function openPage(t, name, server) {
  const tab = await (await browser(t, name)).open(server.address);
  await ready(tab);
  return tab;
}

/** @param {Tab} tab whose page is loading */
export async function ready(tab) {
  await waitFor("the page offers a configuration", () =>
    tab.evaluate(
      `document.querySelector("#configurations-note").textContent !== "Asking the machine…"`,
    ),
  );
}

/**
 * Opens the page in a new browser, chooses an image and starts.
 *
 * @param {import("node:test").TestContext} t
 * @param {keyof typeof BROWSERS} name
 * @param {Server} server with a configuration "0"
 * @param {string} image
 * @returns {Promise<{tab: Tab, session: any}>} once the device is there
 */
export async function attach(t, name, server, image) {
  const tab = await openPage(t, name, server);
  await tab.choose("#file", image);
  await tab.click("#go");
  const session = await server.attached("0").catch(async (error) => {
    assert.fail(`${error.message}\nthe page says: ${await said(tab)}\n${await server.messages()}`);
  });
  return { tab, session };
}

/** @param {Tab} tab @returns {Promise<string>} what the page shows of its state and log */
export async function said(tab) {
  return tab.evaluate(
    `["#state", "#progress", "#offer:not([hidden])", "#log"].map((id) => document.querySelector(id)?.innerText).join("\\n")`,
  );
}

/** @param {Tab} tab @param {RegExp} pattern */
export async function waitUntilSaid(tab, pattern) {
  await waitFor(`the page says ${pattern}`, async () => {
    const text = await said(tab);
    if (pattern.test(text)) return true;
    throw new Error(text);
  });
}
