// The page for everybody: readers of screens, users of a keyboard, narrow and wide windows, dark and light.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { findNothingSerious, isNeat } from "../lib/looks.mjs";
import { browser, openPage, ready, waitUntilSaid } from "../lib/page.mjs";
import { output, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

const TWO = {
  0: { device: "unix:", default: true, metadata: { description: "Virtual media" }, hold: 60 },
  cd: { device: "unix:", media: "cdrom" },
};
const WIDTHS = [360, 1280];
const TAB = "\uE004";
const ENTER = "\uE007";
const SHIFT = "\uE008";
const DOWN = "\uE015";

for (const name of /** @type {const} */ (["chromium", "firefox"])) {
  for (const dark of [false, true]) {
    const scheme = dark ? "dark" : "light";
    test(`${name}, ${scheme}: in every state axe finds nothing serious, nothing overlaps, nothing is too wide`, async (t) => {
      const server = await serve(t, TWO);
      const image = await noise(
        join(server.folder, "a-name-that-is-long-for-a-phone.img"),
        1_000_001,
      );
      const started = await browser(t, name, { dark });
      const tab = await started.open(server.url.origin);
      const look = async (/** @type {string} */ state) => {
        for (const width of WIDTHS) {
          await tab.resize(width, 800);
          await isNeat(tab, `${state}, ${width} pixels`);
        }
        await findNothingSerious(tab, state);
      };
      const isDark = `matchMedia("(prefers-color-scheme: dark)").matches`;
      assert.equal(await tab.evaluate(isDark), dark);

      await waitFor("the login form", () =>
        tab.evaluate(`!document.getElementById("login").hidden`),
      );
      await look("login");
      await tab.go(server.address);
      await ready(tab);
      await look("idle");
      await tab.choose("#file", image);
      await waitFor("the remark", () => tab.evaluate(`!!document.querySelector("#facts li")`));
      await look("chosen");
      await tab.click("#go");
      const { device } = await server.attached("0");
      await output("nbdcopy", [`nbd+unix:///?socket=${device}`, "null:"]);
      await waitFor("the whole map", () =>
        tab.evaluate(`document.querySelector(".map").ariaLabel.includes("100%")`),
      );
      await look("attached");
      await tab.click("#stop");
      await waitUntilSaid(tab, /Ended\./);
      await look("ended");
      await tab.click("#go");
      await server.attached("0");
      await server.program.stop("SIGKILL");
      await waitUntilSaid(tab, /Reconnecting/);
      await look("reconnecting");
    });
  }

  test(`${name}: the keyboard alone attaches, and ejects`, async (t) => {
    const server = await serve(t, TWO);
    const tab = await openPage(t, name, server);
    const image = await noise(join(server.folder, "image"), 1 << 20);
    // The file dialogue is the system's, and no driver's.
    await tab.choose("#file", image);
    const focused = (/** @type {string} */ selector) =>
      tab.evaluate(`document.activeElement.matches(${JSON.stringify(selector)})`);
    const reach = async (/** @type {string} */ selector, held = "") => {
      for (let presses = 0; presses < 30; presses += 1) {
        if (await focused(selector)) return;
        await tab.press(TAB, held);
      }
      assert.fail(`${selector} is out of the keyboard's reach`);
    };
    await tab.evaluate(`void document.activeElement.blur()`);
    await reach("#file");
    await reach("input[type=radio]");
    await tab.press(DOWN);
    await reach("#go");
    await tab.press(ENTER);
    await server.attached("cd");
    await waitFor("stop has the focus that go has lost", () => focused("#stop"));
    await reach(".configuration.ours > button", SHIFT);
    await tab.press(ENTER);
    await server.detached("cd");
  });

  test(`${name}: what is found out about an image moves nothing, and nothing foreign is asked for`, async (t) => {
    const server = await serve(t, TWO);
    const tab = await openPage(t, name, server);
    await tab.resize(360, 800);
    const image = await noise(join(server.folder, "disc.iso.gz"), 1_000_001);
    await tab.evaluate(`void (globalThis.tops = [], new MutationObserver(() => tops.push(
      document.getElementById("configurations").getBoundingClientRect().top + scrollY,
    )).observe(document.getElementById("facts"), { subtree: true, childList: true, characterData: true }))`);
    await tab.choose("#file", image);
    await waitFor("remarks", () => tab.evaluate(`!!document.querySelector("#facts li")`));
    const tops = await tab.evaluate("[...new Set(tops.map(Math.round))]");
    assert.equal(tops.length, 1, `the list was at ${tops}`);
    const foreign = await tab.evaluate(
      `performance.getEntriesByType("resource").filter((one) => !one.name.startsWith(location.origin)).map((one) => one.name)`,
    );
    assert.deepEqual(foreign, []);
  });
}
