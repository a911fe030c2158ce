// Signing in with a name and a password, as people do.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { browser } from "../lib/page.mjs";
import { temporaryFolder, waitFor } from "../lib/process.mjs";
import { PROGRAM, serve } from "../lib/program.mjs";

/** @typedef {import("../lib/browsers.mjs").Tab} Tab */

const PASSWORD = "correct horse of eva";

/**
 * Starts a server that knows `eva`, who may do everything with "0" and look at "seen" alone.
 *
 * @param {import("node:test").TestContext} t
 */
async function serveEva(t) {
  const folder = await temporaryFolder(t);
  const [users, tokens] = [join(folder, "users.json"), join(folder, "tokens.json")];
  const passwd = (/** @type {string[]} */ ...args) =>
    execFileSync(PROGRAM, ["passwd", "--users", users, "--tokens", tokens, ...args], {
      input: PASSWORD,
      encoding: "utf8",
    });
  passwd("add", "eva", "--stdin");
  const token = passwd("token", "add", "test", "--user", "eva").trim();
  const configurations = {
    0: { device: "unix:", allow: ["eva"] },
    seen: { device: "unix:", allow: { look: ["*"] }, default: true },
    hidden: { device: "unix:" },
  };
  const server = await serve(t, configurations, { serve: { users, tokens } });
  assert.equal(server.token, null);
  server.token = token;
  return server;
}

/** @param {Tab} tab @param {string} password */
async function signIn(tab, password) {
  await waitFor("the form", () =>
    tab.evaluate(`!document.getElementById("password-login").hidden`),
  );
  await tab.evaluate(`(() => {
    document.getElementById("user").value = "eva";
    document.getElementById("password").value = ${JSON.stringify(password)};
  })()`);
  await tab.click("#password-login button");
}

for (const name of /** @type {const} */ (["chromium", "firefox", "webkit"])) {
  test(`${name}: a person signs in, attaches, and signs out`, async (t) => {
    const server = await serveEva(t);
    const image = await noise(join(server.folder, "image"), 1 << 20);
    const tab = await (await browser(t, name)).open(server.url.href);
    await signIn(tab, "a wrong password");
    await waitFor("the refusal", async () =>
      /wrong/.test(await tab.evaluate(`document.getElementById("login-problem").innerText`)),
    );
    assert.equal(await tab.evaluate(`document.getElementById("password").value`), "");

    await signIn(tab, PASSWORD);
    await waitFor("the configurations", () =>
      tab.evaluate(`document.querySelectorAll("#configurations li").length === 2`),
    );
    assert.equal(await tab.evaluate(`document.getElementById("account-name").innerText`), "eva");
    assert.deepEqual(
      await tab.evaluate(
        `[...document.querySelectorAll("#configurations input")].map((one) => one.disabled)`,
      ),
      [false, true],
    );
    await tab.choose("#file", image);
    await tab.click("#go");
    assert.equal((await server.attached("0")).user, "eva");
    assert.equal(await tab.evaluate(`document.getElementById("sign-out").disabled`), true);

    await tab.click("#stop");
    await server.detached("0");
    await waitFor("the button", () =>
      tab.evaluate(`!document.getElementById("sign-out").disabled`),
    );
    await tab.click("#sign-out");
    await waitFor("the form", () => tab.evaluate(`!document.getElementById("login").hidden`));
    const status = await tab.evaluate(`fetch("/api/v1/configurations").then((one) => one.status)`);
    assert.equal(status, 401);
    assert.equal(await tab.evaluate(`document.querySelectorAll("#configurations li").length`), 0);
  });
}
