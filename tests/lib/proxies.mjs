// nginx and HAProxy, with the files of packaging/reverse-proxy.

import { readFile, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { join } from "node:path";
import { background, freePort, output, temporaryFolder, waitFor } from "./process.mjs";
import { ROOT } from "./program.mjs";

/** @typedef {import("node:test").TestContext} TestContext */
/** @typedef {{port: number, ca: string, reload: () => Promise<unknown>}} Proxy */

/**
 * A certificate for loopback, as files.
 *
 * @param {string} folder
 */
async function certificate(folder) {
  const [crt, key, pem] = ["crt", "key", "pem"].map((kind) => join(folder, `disks.${kind}`));
  const names = "subjectAltName=IP:127.0.0.1,DNS:*.localhost,DNS:localhost";
  const made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const files = ["-keyout", key, "-out", crt];
  const rest = [
    "-days",
    "2",
    "-subj",
    "/CN=front",
    "-addext",
    names,
    "-addext",
    "basicConstraints=CA:FALSE",
  ];
  await output("openssl", ["req", "-x509", ...made, ...files, ...rest]);
  await writeFile(pem, (await readFile(crt, "utf8")) + (await readFile(key, "utf8")));
  return { crt, key, pem };
}

/**
 * A file of packaging/reverse-proxy with other names, paths and ports; each of them must be there.
 *
 * @param {string} name
 * @param {Record<string, string>} changes
 */
async function example(name, changes) {
  let text = await readFile(join(ROOT, "packaging/reverse-proxy", name), "utf8");
  for (const [from, to] of Object.entries(changes)) {
    if (!text.includes(from)) throw new Error(`${name} lacks ${from}`);
    text = text.replaceAll(from, to);
  }
  return text;
}

/** @param {number} port @param {string} ca file @returns {Promise<unknown>} */
function answers(port, ca) {
  const asked = async () => (await ask(port, ca, { path: "/healthz" })).status;
  return waitFor("the proxy answers", asked);
}

/**
 * nginx before a server.
 *
 * @param {TestContext} t
 * @param {number} upstream port of loopback
 * @returns {Promise<Proxy>}
 */
export async function nginx(t, upstream) {
  const folder = await temporaryFolder(t);
  const port = await freePort();
  const { crt, key } = await certificate(folder);
  const site = await example("nginx.conf", {
    "listen 443 ssl": `listen 127.0.0.1:${port} ssl`,
    "/etc/nginx/disks.crt": crt,
    "/etc/nginx/disks.key": key,
    "127.0.0.1:8000;": `127.0.0.1:${upstream};`,
  });
  await writeFile(join(folder, "site.conf"), site);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((kind) => `${kind}_temp_path ${folder}/${kind};`)
    .join(" ");
  const config = join(folder, "nginx.conf");
  await writeFile(
    config,
    `daemon off; user root; pid ${folder}/pid; error_log stderr; worker_shutdown_timeout 1s; events {}
     http { access_log off; ${temporary} include ${folder}/site.conf; }\n`,
  );
  const program = background(t, "nginx", ["-e", "stderr", "-c", config, "-p", folder]);
  await answers(port, crt);
  const reload = async () => program.child.kill("SIGHUP");
  return { port, ca: crt, reload };
}

/**
 * HAProxy with a file of ours.
 *
 * @param {TestContext} t
 * @param {string} name
 * @param {(folder: string) => Promise<Record<string, string>>} changes beyond port, certificate and time of grace
 * @returns {Promise<Proxy>}
 */
async function haproxyWith(t, name, changes) {
  const folder = await temporaryFolder(t);
  const port = await freePort();
  const { crt, pem } = await certificate(folder);
  const text = await example(name, {
    "bind :443": `bind 127.0.0.1:${port}`,
    "/etc/haproxy/disks.pem": pem,
    "hard-stop-after 10s": "hard-stop-after 1s",
    ...(await changes(folder)),
  });
  const config = join(folder, "haproxy.cfg");
  await writeFile(config, text);
  let program = background(t, "haproxy", ["-db", "-f", config]);
  await answers(port, crt);
  const reload = async () => {
    const old = program;
    program = background(t, "haproxy", ["-db", "-f", config, "-sf", String(old.child.pid)]);
    await old.ended;
  };
  return { port, ca: crt, reload };
}

/**
 * HAProxy before a server.
 *
 * @param {TestContext} t
 * @param {number} upstream port of loopback
 */
export function haproxy(t, upstream) {
  return haproxyWith(t, "haproxy.cfg", async () => ({
    "127.0.0.1:8000 check": `127.0.0.1:${upstream} check`,
  }));
}

/**
 * HAProxy before two servers of machines `a` and `b`, each with a certificate of its own.
 *
 * @param {TestContext} t
 * @param {{port: number, certificate: string}[]} machines
 */
export function haproxyBeforeMachines(t, [a, b]) {
  return haproxyWith(t, "haproxy-machines.cfg", async (folder) => {
    const map = join(folder, "machines.map");
    await writeFile(map, "a.localhost machine-a\nb.localhost machine-b\n");
    return {
      "map(/etc/haproxy/machines.map)": `map(${map})`,
      "/etc/haproxy/machines/a.crt": a.certificate,
      "/etc/haproxy/machines/b.crt": b.certificate,
      "192.0.2.11:8000 sni str(a.disks.example)": `127.0.0.1:${a.port} sni str(a.localhost)`,
      "192.0.2.12:8000 sni str(b.disks.example)": `127.0.0.1:${b.port} sni str(b.localhost)`,
    };
  });
}

/**
 * Asks over TLS.
 *
 * @param {number} port of loopback
 * @param {string} ca file
 * @param {{path: string, method?: string, headers?: Record<string, string>, body?: string, until?: RegExp}} what until:
 *   a part of the body that suffices, where it has no end
 * @returns {Promise<{status: number, headers: import("node:http").IncomingHttpHeaders, text: string}>}
 */
export async function ask(port, ca, { path, method = "GET", headers = {}, body, until }) {
  const trust = { ca: await readFile(ca), rejectUnauthorized: true };
  const settings = { host: "127.0.0.1", port, path, method, headers, ...trust };
  return new Promise((answer, fail) => {
    const asking = request({ ...settings, agent: false, servername: "localhost" }, (response) => {
      let text = "";
      const done = () => {
        answer({ status: response.statusCode ?? 0, headers: response.headers, text });
        asking.destroy();
      };
      response.on("end", done).on("data", (data) => {
        text += data;
        if (until?.test(text)) done();
      });
    });
    asking.on("error", fail).end(body);
  });
}
