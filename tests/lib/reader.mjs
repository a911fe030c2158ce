// A machine that reads its disk again and again, and can't stand an error.

import { background, waitFor } from "./process.mjs";

// Pass after pass over the device, with some requests in flight, each pass hashed; ends after the pass in which it is
// told to.
const PROGRAM = `
import hashlib, sys, threading, nbd
told = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size, step, depth = h.get_size(), 1 << 17, 8
while True:
    digest = hashlib.sha256()
    for start in range(0, size, step * depth):
        parts = [(o, min(step, size - o)) for o in range(start, min(size, start + step * depth), step)]
        buffers = [nbd.Buffer(length) for _, length in parts]
        cookies = [h.aio_pread(b, o) for b, (o, _) in zip(buffers, parts)]
        for cookie, buffer in zip(cookies, buffers):
            while not h.aio_command_completed(cookie):
                h.poll(-1)
            digest.update(buffer.to_bytearray())
        print("at", start, flush=True)
    print("pass", digest.hexdigest(), flush=True)
    if told.is_set():
        break
`;

/** Reads until `finish`. */
export class Reader {
  /**
   * @param {import("node:test").TestContext} t
   * @param {string} uri of NBD
   */
  constructor(t, uri) {
    this.program = background(t, "/usr/bin/python3", ["-c", PROGRAM, uri], {
      stdio: ["pipe", "pipe", "pipe"],
    });
  }

  /** Waits until it has read a little more. */
  async moves() {
    const before = this.program.stdout.length;
    await waitFor("the reader goes on", () => {
      if (!this.program.running) throw new Error(this.program.stderr);
      return this.program.stdout.length > before;
    });
  }

  /** @returns {Promise<string[]>} the SHA-256 of each pass, at least of one whole one after all that happened */
  async finish() {
    await this.moves();
    this.program.child.stdin?.end();
    const status = await this.program.ended;
    if (status !== 0) throw new Error(`the reader failed: ${this.program.stderr}`);
    return [...this.program.stdout.matchAll(/^pass (\w+)$/gm)].map(([, digest]) => digest);
  }
}
