// An NBD server as simple as can be: one slice of the file for each request, as it comes.

import { Link } from "../../web/nbd/link.js";
import { Service } from "../../web/nbd/service.js";

self.onmessage = ({ data: { file, url, token } }) => {
  const { name, size } = file;
  const reader = {
    /** @param {number} offset @param {number} length */
    read: async (offset, length) => [
      new Uint8Array(await file.slice(offset, offset + length).arrayBuffer()),
    ],
    prefetch: () => {},
  };
  const link = new Link(
    { url, protocols: [token], messages: false },
    {
      opened: () => service.start(),
      data: (bytes) => service.receive(bytes),
      message: () => {},
      closed: () => service.stop(),
    },
    WebSocket,
  );
  const service = new Service({ name, description: "one slice per request", size }, reader, link, {
    begun: () => {},
    answered: () => {},
    ended: () => link.close(),
  });
};
