// A reader of a kernel device in a guest, which notices every pause and can't stand an error.

import assert from "node:assert/strict";

// Reads the whole device again and again, past the page cache and with DEPTH requests in flight at any moment, until it is
// told to stop; says what each pass hashed to, and at the end the longest time in which no request was answered.
const READER = `
import hashlib, itertools, mmap, os, sys, threading, time
device, told, depth = sys.argv[1:]
STEP, DEPTH = 1 << 16, int(depth)
fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
size = os.lseek(fd, 0, os.SEEK_END)
blocks = -(-size // STEP)
numbers, passes = itertools.count(), {}
lock, last, pause = threading.Lock(), time.monotonic(), 0

def work():
    global last, pause
    buffer = mmap.mmap(-1, STEP)
    while not os.path.exists(told):
        with lock:
            turn, block = divmod(next(numbers), blocks)
        at = block * STEP
        count = os.preadv(fd, [buffer], at)
        assert count == min(STEP, size - at), count
        with lock:
            now = time.monotonic()
            last, pause = now, max(pause, now - last)
            read = passes.setdefault(turn, {})
            read[at] = buffer[:count]
            whole = len(read) == blocks and passes.pop(turn)
        if whole:
            digest = hashlib.sha256(b"".join(whole[at] for at in sorted(whole)))
            print("pass", digest.hexdigest(), flush=True)

def work_or_fail():
    try:
        work()
    except BaseException as error:
        print("failed", error, flush=True)
        os._exit(1)

threads = [threading.Thread(target=work_or_fail) for _ in range(DEPTH)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("pause %.2f" % pause, flush=True)
`;

/** @typedef {Awaited<ReturnType<import("./guest.mjs").Setting["start"]>>} Job */

/** A reader of /dev/nbd0 in the guest. */
export class DeviceReader {
  /**
   * @param {Job} job
   * @param {string} told a file by which it is told to end
   */
  constructor(job, told) {
    this.job = job;
    this.told = told;
    this.guest = job.guest;
  }

  /** @param {import("./guest.mjs").Setting} setting @param {number} [depth] requests in flight at any moment */
  static async start(setting, depth = 16) {
    const { folder, guest } = setting;
    const told = `${folder}/told`;
    // Neighbours that wait together would become one request, and so fewer than `depth` be in flight.
    await guest.run("echo 2 > /sys/block/nbd0/queue/nomerges");
    await guest.write(`${folder}/reader.py`, READER);
    return new DeviceReader(
      await setting.start(`python3 ${folder}/reader.py /dev/nbd0 ${told} ${depth}`),
      told,
    );
  }

  /**
   * Sends a server a signal at a moment when 16 requests are in flight: those that come while it is stopped.
   *
   * @param {Job} server @param {"KILL" | "TERM"} signal
   */
  async interrupt(server, signal) {
    await server.kill("STOP");
    await this.guest.waitFor(
      "16 requests are in flight",
      `[ "$(awk '{print $1}' /sys/block/nbd0/inflight)" -ge 16 ]`,
    );
    await server.kill(signal);
    if (signal !== "KILL") await server.kill("CONT");
  }

  async passes() {
    return [...(await this.job.output()).matchAll(/^pass (\w+)$/gm)].map(([, hash]) => hash);
  }

  /** Waits for the end of another pass. */
  async reads() {
    const before = (await this.passes()).length;
    const more = `[ "$(grep -c '^pass' ${this.job.name}.log)" -gt ${before} ]`;
    await this.guest.waitFor("the reader goes on", `${more} || grep failed ${this.job.name}.log`);
    assert.doesNotMatch(await this.job.output(), /failed/);
  }

  /** Has it end; gives the longest pause in seconds. @param {string} hash of the image */
  async finish(hash) {
    await this.guest.run(`touch ${this.told}`);
    assert.equal(await this.job.ended(), 0, await this.job.output());
    for (const pass of await this.passes()) assert.equal(pass, hash);
    return Number(/^pause (\S+)$/m.exec(await this.job.output())?.[1]);
  }
}
