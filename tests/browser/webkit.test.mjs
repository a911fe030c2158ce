// WebKit, which nobody's phone or Mac is without: that it serves a disk at all.

import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { attach } from "../lib/page.mjs";
import { output } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

test("webkit: a disk is served from the page", async (t) => {
  const server = await serve(t, { 0: { device: "unix:" } });
  const image = await noise(join(server.folder, "image"), 6_000_128);
  const { tab, session } = await attach(t, "webkit", server, image);
  const uri = `nbd+unix:///?socket=${session.device}`;
  await output("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
  await tab.click("#stop");
  await server.detached("0");
});
