// What can be said of a page's looks without eyes: axe's rules, texts that overlap, what is wider than the window.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

/** @typedef {import("./browsers.mjs").Tab} Tab */

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** @param {Tab} tab @param {string} where for the message */
export async function findNothingSerious(tab, where) {
  const source = await readFile(AXE, "utf8");
  const load = `(() => { if (!window.axe) { ${source} } return true; })()`;
  await tab.evaluate(load);
  const found = await tab.evaluate(`axe.run({ preload: false }).then(({ violations }) =>
    violations.filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, nodes }) => id + ": " + nodes.map((one) => one.html + " " + one.failureSummary).join(" | ")))`);
  assert.deepEqual(found, [], `${where}: axe`);
}

/** @param {Tab} tab @param {string} where for the message */
export async function isNeat(tab, where) {
  const [scroll, width, overlaps] = await tab.evaluate(`(${measure})()`);
  assert.ok(scroll <= width, `${where}: ${scroll} pixels wide in a window of ${width}`);
  assert.deepEqual(overlaps, [], `${where}: texts that overlap`);
}

/** Runs in the page. */
function measure() {
  const { scrollWidth, clientWidth } = document.documentElement;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  /** @type {{text: string, left: number, top: number, right: number, bottom: number}[]} */
  const boxes = [];
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    const parent = /** @type {HTMLElement} */ (node.parentElement);
    const text = (node.textContent ?? "").trim();
    if (text === "" || !parent.checkVisibility({ visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const clip = parent.closest("#log-scroll, .remarks")?.getBoundingClientRect();
    for (const { left, right, top, bottom } of range.getClientRects()) {
      const box = { text, left, right };
      boxes.push({
        ...box,
        top: Math.max(top, clip?.top ?? top),
        bottom: Math.min(bottom, clip?.bottom ?? bottom),
      });
    }
  }
  // Lines of one text may touch; 3 pixels are what ascenders of one font reach into another's line.
  const cross = (/** @type {typeof boxes[0]} */ a, /** @type {typeof boxes[0]} */ b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const overlaps = boxes.flatMap((a, i) =>
    boxes.slice(i + 1).flatMap((b) => (a.text !== b.text && cross(a, b) ? [[a.text, b.text]] : [])),
  );
  return [scrollWidth, clientWidth, overlaps];
}
