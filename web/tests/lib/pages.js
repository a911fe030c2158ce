// Serves web/ as a strict server would, with a page that does nothing by itself.

import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname } from "node:path";

const WEB = new URL("../../", import.meta.url);
const TYPES = new Map([
  [".js", "text/javascript"],
  [".html", "text/html"],
  [".css", "text/css"],
]);

/** Own origin alone: no blob workers, no eval. WebSockets go to the test's machine. */
const POLICY = "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src ws:";

const PROBE = `<!doctype html><title>nbd.js</title><input type="file" id="file">
<script src="/js/nbd.js"></script><script type="module" src="/probe.js"></script>`;

const PROBE_SCRIPT = `
import { NBDServer as Server } from "/nbd/nbd.js";
globalThis.Server = Server;
globalThis.workers = 0;
const PlainWorker = Worker;
globalThis.Worker = class extends PlainWorker {
  constructor(...args) { super(...args); globalThis.workers += 1; }
};
`;

const OWN = new Map([
  ["/probe.html", PROBE],
  ["/probe.js", PROBE_SCRIPT],
]);

/**
 * @param {import("node:test").TestContext} t
 * @param {string[]} [missing] paths that are not found
 * @returns {Promise<string>} the page's address; Server, NBDServer and workers are its globals
 */
export async function servePages(t, missing = []) {
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(String(request.url), "http://localhost");
    try {
      if (missing.includes(pathname)) throw new Error("missing");
      const body = OWN.get(pathname) ?? (await readFile(new URL(`.${pathname}`, WEB)));
      const type = TYPES.get(extname(pathname)) ?? "application/octet-stream";
      response.writeHead(200, { "content-type": type, "content-security-policy": POLICY });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return `http://127.0.0.1:${port}/probe.html`;
}
