// The page over TLS, with a certificate that the server made itself.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { noise, sha256 } from "../lib/images.mjs";
import { attach } from "../lib/page.mjs";
import { output } from "../lib/process.mjs";
import { serve } from "../lib/program.mjs";

for (const name of /** @type {const} */ (["chromium", "firefox"])) {
  test(`${name}: an image over wss: is the same to libnbd, and no script sees the cookie`, async (t) => {
    const server = await serve(t, { 0: { device: "unix:" } }, {}, ["--tls-self-signed"]);
    assert.equal(server.url.protocol, "https:");
    const image = await noise(join(server.folder, "image"), 8 << 20);
    const { tab, session } = await attach(t, name, server, image);
    assert.equal(await tab.evaluate("location.protocol"), "https:");
    assert.equal(await tab.evaluate("isSecureContext"), true);
    assert.equal(await tab.evaluate("document.cookie"), "");
    const copy = join(server.folder, "copy");
    await output("nbdcopy", [`nbd+unix:///?socket=${session.device}`, copy]);
    assert.equal(await sha256(copy), await sha256(image));
    await tab.click("#stop");
    await server.detached("0");
  });
}
