// What the page tells: of an image before it is attached, and of the machine's reads while it is.

import assert from "node:assert/strict";
import { truncate } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { bootableIso, noise, sha256 } from "../lib/images.mjs";
import { openPage } from "../lib/page.mjs";
import { output, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

/** @typedef {import("../lib/browsers.mjs").Tab} Tab */

/** @param {Tab} tab @param {string} selector @param {RegExp} pattern */
async function shows(tab, selector, pattern) {
  await waitFor(`${selector} shows ${pattern}`, async () => {
    const text = await tab.evaluate(
      `document.querySelector(${JSON.stringify(selector)}).innerText`,
    );
    if (pattern.test(text)) return true;
    throw new Error(text);
  });
}

for (const name of /** @type {const} */ (["chromium", "firefox", "webkit"])) {
  test(`${name}: what an image is, what is wrong with it, and how to convert it`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:", media: "cdrom" } });
    const file = (/** @type {string} */ image) => join(server.folder, image);
    const tab = await openPage(t, name, server);

    await output("qemu-img", ["create", "-q", "-f", "qcow2", file("vm.qcow2"), "1M"]);
    await tab.choose("#file", file("vm.qcow2"));
    await shows(
      tab,
      "#facts",
      /qcow2[\s\S]*Not as it is[\s\S]*qemu-img convert .* vm\.qcow2 vm\.raw/,
    );

    await output("cp", [await bootableIso(), file("cut.iso")]);
    await truncate(file("cut.iso"), 20_000_000);
    await tab.choose("#file", file("cut.iso"));
    await shows(tab, "#facts", /ISO 9660 hybrid[\s\S]*BIOS[\s\S]*ISOIMAGE[\s\S]*cut off/);

    // A hole takes no room, and reads as zeros.
    await output("cp", [await bootableIso(), file("large.iso")]);
    await truncate(file("large.iso"), 2_500_000_000);
    await tab.choose("#file", file("large.iso"));
    await shows(tab, "#image-size", /2\.50 GB/);
    await shows(tab, "#facts", /CD-ROM shows the first 2\.36 GB \(2\.2 GiB\) alone/);

    const odd = await noise(file("odd.img"), 4_000_001);
    await tab.choose("#file", odd);
    await shows(tab, "#facts", /Not recognised/);
    await shows(tab, "#image-note", /255 bytes of zeros/);
    await tab.click("#facts button");
    await shows(tab, "#facts", new RegExp(await sha256(odd)));
  });

  test(`${name}: a file can be dropped anywhere on the page, but not two`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } });
    const tab = await openPage(t, name, server);
    const drop = (/** @type {string[]} */ ...names) =>
      tab.evaluate(`(() => {
        const dataTransfer = new DataTransfer();
        for (const name of ${JSON.stringify(names)}) {
          dataTransfer.items.add(new File([new Uint8Array(2048)], name));
        }
        return document.querySelector("header").dispatchEvent(
          new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
      })()`);
    assert.equal(await drop("one.iso", "two.iso"), false, "or the browser would open it");
    await shows(tab, "#state", /not one file/);
    await drop("one.iso");
    await shows(tab, "#image-name", /^one\.iso$/);
    await tab.click("#go");
    assert.equal((await server.attached("0")).image.name, "one.iso");
  });

  test(`${name}: while attached: device, speed, round trip, map, copy, and the last read long after it`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:", keep: "memory" } });
    const image = await noise(join(server.folder, "image"), 24 << 20);
    const tab = await openPage(t, name, server);
    await tab.evaluate(`(() => {
      globalThis.progress = new Set();
      const text = document.getElementById("progress");
      new MutationObserver(() => progress.add(text.textContent)).observe(text, { childList: true });
    })()`);
    await tab.choose("#file", image);
    await tab.click("#go");
    const { device } = await server.attached("0");
    await shows(tab, "#state", new RegExp(`Attached as ${device}`));
    const uri = `nbd+unix:///?socket=${device}`;
    await output("qemu-io", ["-r", "-f", "raw", "-c", "read 20M 4k", uri]);
    await shows(
      tab,
      ".figures",
      /Speed\s+[\d.]+ [kM]?B\/s[\s\S]*Served\s+[\d.]+ [kM]B[\s\S]*Round trip\s+\d[\d.]* ms/,
    );
    await waitFor("the whole map", () =>
      tab.evaluate(`document.querySelector(".map").getAttribute("aria-label").includes("100%")`),
    );
    await shows(tab, "#state", /whole copy[\s\S]*may be closed/);
    const progress = await tab.evaluate("[...progress].join(' ')");
    assert.match(progress, /Copied to the machine: \d+% \([^)]* of 25\.2 MB/);
    const plot = `document.querySelector(".plot").getAttribute("aria-label")`;
    assert.match(await tab.evaluate(plot), /three minutes: [\d.]+ [kM]?B\/s now, at most \d/);
    await shows(tab, ".reading", /^Idle\. Last read 0:\d\d ago: [\d.]+ [kM]?B at [\d.]+ MB\.$/);
  });
}
