// The most that a page can send of a file: windows of 4 MiB, one read ahead, and nothing is answered.

const WINDOW = 4 << 20;
const MOST_UNSENT = 16 << 20;

self.onmessage = ({ data: { file, url } }) => {
  const socket = new WebSocket(url);
  socket.onopen = () => send(socket, file);
};

/** @param {WebSocket} socket @param {File} file */
async function send(socket, file) {
  /** @param {number} at */
  const read = (at) => file.slice(at, at + WINDOW).arrayBuffer();
  let next = read(0);
  for (let at = 0; at < file.size; at += WINDOW) {
    const window = await next;
    next = read(at + WINDOW);
    while (socket.bufferedAmount > MOST_UNSENT) {
      await new Promise((resume) => setTimeout(resume, 1));
    }
    socket.send(window);
  }
}
