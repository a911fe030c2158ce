// nbd.js as an npm package in somebody else's console: with types, bundled by Vite and by esbuild, from another origin.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { test } from "node:test";
import { noise } from "../lib/images.mjs";
import { browser } from "../lib/page.mjs";
import { atEnd, output, temporaryFolder } from "../lib/process.mjs";
import { ROOT, serve } from "../lib/program.mjs";

const SIZE = 3 << 20;
const TYPES = new Map([
  [".html", "text/html"],
  [".js", "text/javascript"],
]);

const CONSOLE = `
import { NBDServer } from "nbd-proxy";
const options = new URLSearchParams(location.search);
const response = await fetch("/image");
const server = new NBDServer(options.get("endpoint"), await response.blob(), {
  token: options.get("token"),
  name: "image.raw",
});
server.start();
`;

const TYPED_CONSOLE = `
import { ImageError, NBDServer, type Options, type State } from "nbd-proxy";
const options: Options = { token: "secret", session: true };
const server = new NBDServer("/nbd/0", new Blob(["x"]), options);
server.addEventListener("state", (event) => {
  const state: State = event.detail;
  const left: number | undefined = state.held?.secondsLeft;
  console.log(state.phase, left);
});
server.onlog = (message) => console.log(message.length);
new NBDServer("/vm/0/0", null, "0", "token").start();
export { ImageError };
`;

const TOOLS = {
  vite: (/** @type {string} */ app) =>
    tool("vite", ["build", "--base", "./", "--logLevel", "error"], app),
  // It leaves the Worker's address as it is: nbd.js finds the Worker beside the bundle.
  esbuild: (/** @type {string} */ app) =>
    tool(
      "esbuild",
      [
        "dist/index=main.js",
        "dist/worker=node_modules/nbd-proxy/web/nbd/worker.js",
        "--bundle",
        "--format=esm",
        "--outdir=.",
        "--log-level=error",
      ],
      app,
    ),
};

/** @param {string} name of a package's program @param {string[]} args @param {string} cwd */
async function tool(name, args, cwd) {
  await output(join(ROOT, "node_modules/.bin", name), args, { cwd });
}

/**
 * A folder with a console that has the packed library among its modules.
 *
 * @param {import("node:test").TestContext} t
 */
async function consoleWithPackage(t) {
  const app = await temporaryFolder(t);
  const module = join(app, "node_modules/nbd-proxy");
  await mkdir(module, { recursive: true });
  await output("npm", ["pack", "--silent", "--pack-destination", app], { cwd: ROOT });
  const { version } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8"));
  await output("tar", ["-xzf", join(app, `nbd-proxy-${version}.tgz`), "--strip=1", "-C", module]);
  await writeFile(join(app, "package.json"), '{ "type": "module" }');
  await writeFile(join(app, "main.js"), CONSOLE);
  await writeFile(
    join(app, "index.html"),
    '<!DOCTYPE html><script type="module" src="./main.js"></script>',
  );
  return app;
}

/**
 * Serves files of `folder`, and says which were asked for.
 *
 * @param {import("node:test").TestContext} t
 * @param {string} folder
 */
async function serveFiles(t, folder) {
  /** @type {string[]} */
  const asked = [];
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    asked.push(pathname);
    const body = await readFile(join(folder, pathname)).catch(() => null);
    const type = TYPES.get(extname(pathname)) ?? "application/octet-stream";
    response.writeHead(body ? 200 : 404, { "Content-Type": type });
    response.end(body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  atEnd(t, async () => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { asked, url: `http://127.0.0.1:${port}` };
}

for (const [name, build] of Object.entries(TOOLS)) {
  test(`bundled by ${name}, the package serves a disk from a Worker of its own`, async (t) => {
    const app = await consoleWithPackage(t);
    await build(app);
    const dist = join(app, "dist");
    if (name === "esbuild") {
      await writeFile(
        join(dist, "index.html"),
        '<!DOCTYPE html><script type="module" src="./index.js"></script>',
      );
    }
    await noise(join(dist, "image"), SIZE);
    const files = await serveFiles(t, dist);
    const server = await serve(t, { 0: { device: "unix:" } }, { serve: { origins: [files.url] } });
    const endpoint = `ws://${server.url.host}/nbd/0`;
    const query = new URLSearchParams({ endpoint, token: String(server.token) });
    await (await browser(t, "chromium")).open(`${files.url}/index.html?${query}`);
    const { device } = await server.attached("0");
    await output("qemu-img", [
      ...["compare", "-f", "raw", "-F", "raw"],
      join(dist, "image"),
      `nbd+unix:///?socket=${device}`,
    ]);
    assert.ok(
      files.asked.some((path) => /worker[^/]*\.js$/.test(path)),
      `no Worker among ${files.asked.join(", ")}`,
    );
  });
}

test("TypeScript takes the package's types in its strictest mode", async (t) => {
  const app = await consoleWithPackage(t);
  await writeFile(join(app, "console.ts"), TYPED_CONSOLE);
  const flags = ["--strict", "--noEmit", "--target", "es2023", "--lib", "es2023,dom"];
  await tool(
    "tsc",
    [...flags, "--module", "esnext", "--moduleResolution", "bundler", "--types", "", "console.ts"],
    app,
  );
});
