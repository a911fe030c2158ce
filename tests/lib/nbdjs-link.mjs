// nbd.js as a page runs it, without a browser: serves a file to a WebSocket until either side ends.
//
//   node tests/lib/nbdjs-link.mjs URL IMAGE
//
// A URL whose path ends in /nbd/NAME gets a link of version 1. Prints what happens, line by line.
// SIGINT and SIGTERM stop in order. The exit status is 0 when it ended in order.

import { openAsBlob } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { WebSocket } from "ws";
import { NBDServer } from "../../web/nbd/nbd.js";

const [url, path] = process.argv.slice(2);
if (path === undefined) {
  console.error("usage: node nbdjs-link.mjs URL IMAGE");
  process.exit(2);
}

const server = new NBDServer(url, await openAsBlob(path), {
  name: basename(path),
  modified: Math.floor((await stat(path)).mtimeMs),
  WebSocket: /** @type {any} */ (WebSocket),
});
server.onlog = (line) => console.log(line);
server.socketClosed = () => {
  process.exitCode = server.state.error === null ? 0 : 1;
};
server.start();

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => server.stop());
}
