// nbd.js in a page that shows nothing of what it does.

import { NBDServer } from "../../web/nbd/nbd.js";

self.onmessage = ({ data: { file, url, token } }) => {
  new NBDServer(url, file, { token, worker: false }).start();
};
