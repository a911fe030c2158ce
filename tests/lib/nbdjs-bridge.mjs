// nbd.js on a Unix socket: its NBD server between a file and whoever connects, so that clients
// which others wrote (libnbd, QEMU) can judge it.
//
//   node tests/lib/nbdjs-bridge.mjs SOCKET IMAGE [NAME]
//
// Prints "listening" once it does; each connection is served on its own. Ends by SIGTERM or SIGINT.

import { once } from "node:events";
import { openAsBlob } from "node:fs";
import { unlink } from "node:fs/promises";
import { createServer } from "node:net";
import { basename } from "node:path";
import { WindowCache } from "../../web/nbd/cache.js";
import { openImage } from "../../web/nbd/image.js";
import { Service } from "../../web/nbd/service.js";

const [path, file, name = basename(file ?? "")] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: node nbdjs-bridge.mjs SOCKET IMAGE [NAME]");
  process.exit(2);
}

const source = await openImage(await openAsBlob(file), { name });

/** @param {import("node:net").Socket} socket */
function serve(socket) {
  const transport = {
    /** @param {Uint8Array} bytes */
    send: (bytes) => void socket.write(bytes),
    backlog: () => socket.writableLength,
    /** @param {() => void} resume */
    onceDrained: (resume) => void socket.once("drain", resume),
  };
  const exported = { name, description: "served by nbd.js", size: source.info.size };
  const cache = new WindowCache({ size: source.info.size, read: source.read });
  const service = new Service(exported, cache, transport, {
    begun: () => {},
    answered: () => {},
    ended: (error) => {
      if (error !== null) {
        console.error(`nbdjs-bridge: ${error.message}`);
      }
      socket.end();
    },
  });
  socket.on("data", (bytes) => service.receive(bytes));
  socket.on("close", () => service.stop());
  socket.on("error", () => socket.destroy());
  service.start();
}

const server = createServer(serve);
server.listen(path);
await once(server, "listening");
console.log("listening");

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, async () => {
    await unlink(path).catch(() => {});
    process.exit(0);
  });
}
