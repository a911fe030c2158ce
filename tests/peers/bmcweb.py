"""A program that treats nbd-proxy as OpenBMC's bmcweb does, with a page like webui-vue's behind it.

bmcweb starts us on two pipes. What we print it sends to the page, as it comes. What the page sends it queues
in a buffer of fixed size and writes to us piece by piece. It can't take a message above MESSAGE_LIMIT, and it
closes the session when its queue overflows. Even below that it moves the queued bytes under a write that
waits for room in the pipe, when another message comes in: so that must not happen either.
At the end it sends SIGTERM, reads no more, and blocks until we are gone.
"""

import fcntl
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time

import harness
import raw

#: The largest message that bmcweb takes from a page: 128 KiB and a reply's header.
MESSAGE_LIMIT = 128 * 1024 + 16

#: The capacity of its buffer toward us.
QUEUE_LIMIT = 4 * MESSAGE_LIMIT


class Page:
    """The NBD server that webui-vue's page was: EXPORT_NAME alone, a whole reply in one message.

    It may answer out of order, as reads of a file end in any order. Asked past the end it stops for good.
    """

    def __init__(self, content, seed=1):
        self.content = content
        self.random = random.Random(seed)
        self.received = bytearray()
        self.step = self._client_flags
        self.waiting = []
        self.options = []
        self.faults = []

    def greeting(self):
        return [raw.NBDMAGIC + raw.IHAVEOPT + struct.pack(">H", raw.FIXED_NEWSTYLE | raw.NO_ZEROES)]

    def receive(self, data):
        """Takes a message; returns the messages sent at once."""
        self.received += data
        messages = []
        while (taken := self.step(messages)) > 0:
            del self.received[:taken]
        return messages

    def answer_some(self):
        """Ends one of the reads under way, if there is one."""
        if not self.waiting:
            return []
        cookie, offset, length = self.waiting.pop(self.random.randrange(len(self.waiting)))
        header = struct.pack(">IIQ", raw.SIMPLE_REPLY_MAGIC, 0, cookie)
        return [header + self.content[offset : offset + length]]

    def _client_flags(self, _messages):
        if len(self.received) < 4:
            return 0
        self.step = self._option
        return 4

    def _option(self, messages):
        if len(self.received) < 16:
            return 0
        option, length = struct.unpack_from(">8xII", self.received)
        if len(self.received) < 16 + length:
            return 0
        self.options.append(option)
        if option == raw.OPT_EXPORT_NAME:
            messages.append(struct.pack(">QH", len(self.content), 0b11))
            self.step = self._request
        else:
            messages.append(struct.pack(">QIII", raw.OPTION_REPLY_MAGIC, option, raw.REP_ERR_UNSUP, 0))
        return 16 + length

    def _request(self, messages):
        if len(self.received) < 28:
            return 0
        magic, _flags, kind, cookie, offset, length = struct.unpack_from(">IHHQQI", self.received)
        if magic != raw.REQUEST_MAGIC:
            self.faults.append(f"a request that begins with {magic:#x}")
        elif kind == raw.CMD_READ and offset + length <= len(self.content):
            self.waiting.append((cookie, offset, length))
        elif kind == raw.CMD_READ:
            self.faults.append(f"asked for {length} bytes at {offset}, past the end")
        elif kind != raw.CMD_DISC:
            errno = raw.EPERM if kind in (raw.CMD_WRITE, raw.CMD_TRIM) else raw.EINVAL
            messages.append(struct.pack(">IIQ", raw.SIMPLE_REPLY_MAGIC, errno, cookie))
        return 28


class Bmcweb:
    """Runs nbd-proxy between two pipes, in a thread, and notes every limit that was exceeded."""

    def __init__(self, scope, setting, page, burst=False):
        self.page = page
        #: Whether the page lets reads pile up while requests come, and then answers all of them together.
        self.burst = burst
        #: Whether the pipe may become full, as a small one does.
        self.may_fill_pipe = False
        self.program = scope.start(
            harness.PROGRAM, "0", env=setting.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.into = self.program.process.stdin.fileno()
        self.out = self.program.process.stdout.fileno()
        os.set_blocking(self.into, False)
        os.set_blocking(self.out, False)
        self.queue = bytearray()
        self.faults = page.faults
        self.largest = {"message": 0, "queue": 0, "reads waiting": 0}
        self.pipe_is_full = False
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @property
    def pipe_size(self):
        """Bytes that the pipe toward nbd-proxy holds."""
        return fcntl.fcntl(self.into, fcntl.F_GETPIPE_SZ)

    def shrink_pipe(self):
        """Makes the pipe as small as one that may not be enlarged."""
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, 1 << 16)
        self.may_fill_pipe = True

    def stop_reading(self):
        self.ending.set()
        self.thread.join()

    def close(self):
        """What bmcweb does when the page goes: SIGTERM, no more reading, wait. Returns (status, seconds)."""
        self.stop_reading()
        start = time.monotonic()
        self.program.send(signal.SIGTERM)
        return self.program.wait(), time.monotonic() - start

    def _run(self):
        self._send(self.page.greeting())
        while not self.ending.is_set():
            pause = 0.02 if self.burst or not self.page.waiting else 0
            writers = [self.into] if self.queue else []
            readable, writable, _ = select.select([self.out], writers, [], pause)
            if writable:
                self._write()
            if readable:
                data = os.read(self.out, QUEUE_LIMIT)
                if not data:
                    return
                self._send(self.page.receive(data))
            elif not writable:
                self._answer()

    def _answer(self):
        waiting = len(self.page.waiting)
        self.largest["reads waiting"] = max(self.largest["reads waiting"], waiting)
        for _ in range(waiting if self.burst else min(waiting, 1)):
            self._send(self.page.answer_some())

    def _send(self, messages):
        """Queues messages of the page, each of which has come in by itself."""
        for message in messages:
            if len(message) > MESSAGE_LIMIT:
                self.faults.append(f"a message of {len(message)} bytes")
            if self.pipe_is_full and not self.may_fill_pipe:
                self.faults.append("a message came in while a write waited for room in the pipe")
            self.queue += message
            if len(self.queue) > QUEUE_LIMIT:
                self.faults.append(f"{len(self.queue)} bytes queued")
            self.largest["message"] = max(self.largest["message"], len(message))
            self.largest["queue"] = max(self.largest["queue"], len(self.queue))
            self._write()

    def _write(self):
        while self.queue:
            try:
                written = os.write(self.into, self.queue)
            except BlockingIOError:
                self.pipe_is_full = True
                return
            except BrokenPipeError:
                self.queue.clear()
                return
            self.pipe_is_full = False
            del self.queue[:written]
