// WebKit, which nobody's phone or Mac is without: attach, read, eject. What its driver can't do is not tried: windows
// of a phone's width, a chosen colour scheme, and the file dialogue itself.

import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { attach } from "../lib/page.mjs";
import { output, waitFor } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

test("webkit: a disk is served from the page", async (t) => {
  const server = await serve(t, { 0: { device: "unix:" } });
  const image = await noise(join(server.folder, "image"), 6_000_128);
  const { tab, session } = await attach(t, "webkit", server, image);
  const uri = `nbd+unix:///?socket=${session.device}`;
  await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
  await waitFor("the map shows all of it, and the history nothing yet", () =>
    tab.evaluate(`document.querySelector(".map").getAttribute("aria-label").includes("100%") &&
      document.querySelectorAll("#history li").length === 0`),
  );
  await tab.click(".configuration > button");
  await server.detached("0");
  await waitFor("the history tells of it", () =>
    tab.evaluate(`/ejected/i.test(document.querySelector("#history").textContent)`),
  );
  await tab.click("#go");
  await server.attached("0");
  await tab.click("#stop");
  await server.detached("0");
});
