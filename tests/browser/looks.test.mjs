// The page for everybody: readers of screens, users of a keyboard, narrow and wide windows, dark and light.

import assert from "node:assert/strict";
import { mkdtemp, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { bootableIso, noise } from "../lib/images.mjs";
import { findNothingSerious, isNeat } from "../lib/looks.mjs";
import { browser, openPage, ready, waitUntilSaid } from "../lib/page.mjs";
import { output, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

const TWO = {
  0: { device: "unix:", default: true, metadata: { description: "Virtual media" }, hold: 60 },
  cd: { device: "unix:", media: "cdrom" },
};
const NAMES = /** @type {const} */ (["chromium", "firefox", "webkit"]);
/** Of a small phone and a common one, and of a desk. */
const WIDTHS = [320, 360, 1280];
/** Nothing that a line could be broken at. */
const ENDLESS = "W".repeat(200);
const TAB = "\uE004";
const ENTER = "\uE007";
const SHIFT = "\uE008";
const DOWN = "\uE015";

for (const name of NAMES) {
  for (const dark of [false, true]) {
    const scheme = dark ? "dark" : "light";
    test(`${name}, ${scheme}: in every state, and with names without end, axe finds nothing serious, nothing overlaps, nothing is too wide`, async (t) => {
      const place = ENDLESS.slice(0, 60);
      const metadata = { description: ENDLESS };
      const server = await serve(t, { ...TWO, [place]: { device: "unix:", hold: 60, metadata } });
      const image = await noise(join(server.folder, `${ENDLESS}.img`), 1_000_001);
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
      await tab.click(`input[value=${place}]`);
      await look("chosen");
      await tab.click("#go");
      const { device } = await server.attached(place);
      await output("nbdcopy", [`nbd+unix:///?socket=${device}`, "null:"]);
      await waitFor("the whole map", () =>
        tab.evaluate(`document.querySelector(".map").getAttribute("aria-label").includes("100%")`),
      );
      await look("attached");
      await tab.click("#stop");
      await waitUntilSaid(tab, /Ended\./);
      await look("ended");
      await tab.click("#go");
      await server.attached(place);
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

  test(`${name}: on a phone nothing moves but by a press of the person, and nothing foreign is asked for`, async (t) => {
    // As long as those of /run/nbd-proxy are.
    const folder = await mkdtemp("/tmp/n-");
    t.after(() => rm(folder, { recursive: true }));
    const device = `unix:${folder}/0.sock`;
    const server = await serve(t, { ...TWO, 0: { ...TWO[0], device, keep: "memory" } });
    const tab = await openPage(t, name, server);
    await tab.resize(360, 800);
    const image = join(server.folder, "debian.iso");
    await symlink(await bootableIso(), image);
    await tab.evaluate(`void new MutationObserver((_, one) => {
      if (facts.hidden) return;
      one.disconnect();
      (${watch})();
    }).observe(facts, { attributes: true })`);
    await tab.choose("#file", image);
    await waitFor("what it is", () =>
      tab.evaluate(`/hybrid/.test(document.getElementById("facts").innerText)`),
    );
    await tab.click("#facts button");
    await waitFor("its hash", () =>
      tab.evaluate(`/[0-9a-f]{64}/.test(document.getElementById("facts").textContent)`),
    );
    assert.deepEqual(await tab.evaluate("moved"), [], "while the image is looked at");

    // Its own plot and map come with the press, and before the machine has answered.
    await tab.evaluate(
      `(document.getElementById("go").click(), new Promise((r) => setTimeout(r)).then(${watch}))`,
    );
    await server.attached("0");
    await waitUntilSaid(tab, /whole copy/);
    await tab.evaluate(`void document.getElementById("stop").click()`);
    await waitUntilSaid(tab, /Ended\./);
    await tab.evaluate(`void document.getElementById("go").click()`);
    await server.attached("0");
    await server.program.stop("SIGKILL");
    await waitUntilSaid(tab, /Reconnecting/);
    assert.deepEqual(await tab.evaluate("moved"), [], "from Start until the link is lost");
    const foreign = await tab.evaluate(
      `performance.getEntriesByType("resource").filter((one) => !one.name.startsWith(location.origin)).map((one) => one.name)`,
    );
    assert.deepEqual(foreign, []);
  });
}

/** Runs in the page: notes in `moved` what changes its place from now on, of what can be pressed or read. */
function watch() {
  const marks = [
    ...document.querySelectorAll("h2, h3, button, label, dl, svg, .caption, .legend"),
  ].filter((mark) => mark.checkVisibility());
  const places = () => marks.map((mark) => mark.getBoundingClientRect().top + scrollY);
  let last = places();
  /** @type {string[]} */
  const moved = [];
  Object.assign(globalThis, { moved });
  const look = () => {
    const now = places();
    for (const [index, mark] of marks.entries()) {
      const [from, to] = [last[index], now[index]];
      if (mark.checkVisibility() && Math.abs(to - from) > 1) {
        moved.push(`${mark.tagName} ${mark.id || mark.textContent}: ${from} to ${to}`);
      }
    }
    last = now;
    requestAnimationFrame(look);
  };
  look();
}
