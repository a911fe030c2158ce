"""Processor time of what stands between a WebSocket and a Unix socket, for the same bytes; and of the form on standard
input and output, beside socat in its place. Allocations are those of the whole of `serve`: of so many reads at depth 1
less those of fewer, after the cache is full.
"""

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import threading
import time

from harness import (
    GIB,
    PYTHON,
    ROOT,
    Failed,
    copy_rate,
    cpu_seconds,
    family,
    free_port,
    listens,
    output,
    resident,
    running,
    serve,
    share,
    shared,
    uri,
    wait_for,
)
from report import Row

TITLE = "What it costs"

# Sends `length` bytes over a WebSocket as fast as they are taken.
PUMP = """
const [address, length] = [process.argv[1], Number(process.argv[2])];
const piece = new Uint8Array(128 << 10);
const { WebSocket } = await import("ws");
const socket = new WebSocket(address);
await new Promise((resolve) => { socket.onopen = resolve; });
for (let sent = 0; sent < length; sent += piece.length) {
  while (socket.bufferedAmount > 4 << 20) await new Promise((resolve) => setTimeout(resolve, 1));
  socket.send(piece);
}
setInterval(() => {}, 1000);
"""


class Drain(threading.Thread):
    """Takes the bytes of the first who connects, and keeps the connection: some relays end with theirs, and their
    processor time could not be read any more.
    """

    def __init__(self, listener, length):
        super().__init__(daemon=True)
        self.listener, self.length = listener, length
        self.got, self.connection = 0, None

    def run(self):
        self.connection, _ = self.listener.accept()
        room = bytearray(1 << 20)
        while self.got < self.length and (count := self.connection.recv_into(room)) > 0:
            self.got += count

    def close(self):
        if self.connection:
            self.connection.close()


def relayed(bench, command):
    """CPU seconds a GiB of a relay from a WebSocket to a Unix socket; `command` makes it from its port and the path."""
    path, port = bench.folder() / "drain.sock", free_port()
    with socket.socket(socket.AF_UNIX) as listener, contextlib.closing(Drain(listener, bench.size)) as drain:
        listener.bind(str(path))
        listener.listen()
        drain.start()
        with running(*command(port, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as relay:
            wait_for(lambda: listens(port), f"{command(port, path)[0]}'s port")
            # Who answered the look at the port may end at any moment, and has done next to nothing.
            before = cpu_seconds(relay.pid)
            with running("node", "--input-type=module", "-e", PUMP, f"ws://127.0.0.1:{port}/", bench.size,
                         cwd=ROOT):
                drain.join(120)
                spent = sum(map(cpu_seconds, family(relay.pid))) - before
    if drain.got != bench.size or spent == 0:
        raise Failed(f"{command(port, path)[0]} moved {drain.got} of {bench.size} bytes in {spent} s")
    return spent / (bench.size / GIB)


def websocketd(port, path):
    socat = ["socat", "-b", "131072", "STDIO", f"UNIX-CONNECT:{path}"]
    return ["websocketd", f"--port={port}", "--address=127.0.0.1", "--binary=true", *socat]


def websockify(port, path):
    return ["websockify", f"127.0.0.1:{port}", f"--unix-target={path}"]


def served(bench):
    """CPU seconds a GiB of `serve`, with the megabytes that it holds idle and at most."""
    with shared(bench, bench.image) as (path, pid, _):
        idle, before = resident(pid), cpu_seconds(pid)
        copy_rate(path, bench.size)
        return (cpu_seconds(pid) - before) / (bench.size / GIB), idle, resident(pid, "VmHWM")


def piped(bench, command):
    """CPU seconds a GiB and most megabytes of a filter between nbdkit and nbdcopy, on two pipes as websocketd and bmcweb
    start one; `command` makes it from the folder.
    """
    folder = bench.folder()
    path = folder / "filter.sock"
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder)}
    (requests, asking), (replies, answering) = os.pipe(), os.pipe()
    with running("nbdkit", "-s", "-f", "file", bench.image, stdin=requests, stdout=answering):
        with running(*command(folder, path), stdin=replies, stdout=asking, stderr=subprocess.DEVNULL,
                     env=environment) as process:
            for end in (requests, asking, replies, answering):
                os.close(end)
            wait_for(path.exists, "the filter's socket")
            spent, most = watched(process, path)
    return spent / (bench.size / GIB), most


def watched(process, path):
    """CPU seconds and most megabytes of a process while nbdcopy reads what it serves; it may end by itself."""
    before = cpu_seconds(process.pid)
    reader = subprocess.Popen(["nbdcopy", "--connections=1", "--request-size=131072", uri(path), "null:"])
    spent = most = 0
    while reader.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            spent, most = cpu_seconds(process.pid) - before, resident(process.pid, "VmHWM")
        time.sleep(0.005)
    if reader.returncode != 0:
        raise Failed("nbdcopy could not read what the filter serves")
    return spent, most


def proxy_filter(bench, folder, path):
    config = folder / "config.json"
    config.write_text(json.dumps({"configurations": {"0": {"device": f"unix:{path}", "state-hook": str(folder / "none")}}}))
    return [bench.small, "--config", config, "0"]


def socat(folder, path):
    return ["socat", "-b", "131072", "STDIO", f"UNIX-LISTEN:{path}"]


READ = """
import random, sys, nbd
uri, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
handle = nbd.NBD()
handle.connect_uri(uri)
chance = random.Random(1)
for number in range(count):
    if how == "anywhere":
        handle.pread(4096, chance.randrange(handle.get_size() // 4096) * 4096)
    else:
        handle.pread(131072, number * 131072 % handle.get_size())
"""


def allocated(bench, how, count):
    """How often `serve` allocates in all when it is read so often."""
    with serve(bench, program=bench.counting) as server, share(bench, server, bench.image):
        output(PYTHON, "-c", READ, uri(server.device()), how, count)
    said = rf"^{server.process.pid} allocated (\d+) times"
    return int(re.search(said, (server.folder / "log").read_text(), re.MULTILINE)[1])


def allocations(bench, how):
    """How often `serve` allocates for one read, once it is in a steady state."""
    few, many = (1000, 2000) if bench.quick else (20000, 40000)
    return (allocated(bench, how, many) - allocated(bench, how, few)) / (many - few)


def medians(rounds, *measures):
    """The medians of what each measure gives, taken in turn."""
    taken = [[measure() for measure in measures] for _ in range(rounds)]
    return [[statistics.median(values) for values in zip(*results)] for results in zip(*taken)]


def run(bench):
    (ours, idle, most), [theirs], [other] = medians(
        bench.rounds, lambda: served(bench), lambda: [relayed(bench, websocketd)], lambda: [relayed(bench, websockify)]
    )
    # Either may take twice as long in one round as in the next.
    (filtered, filter_most), (socats, _) = medians(
        3 * bench.rounds, lambda: piped(bench, lambda *at: proxy_filter(bench, *at)), lambda: piped(bench, socat)
    )
    return [
        Row("serve", ours, "s/GiB", "websocketd and socat", theirs, ("at most", 0.5)),
        Row("serve, beside websockify", ours, "s/GiB", "websockify", other),
        Row("the filter on standard input and output", filtered, "s/GiB", "socat", socats, ("at most", 1.2)),
        Row("serve, idle", idle, "MB", "resident", target=("at most", 12)),
        Row("the filter, streaming", filter_most, "MB", "resident at most", target=("at most", 4)),
        Row("serve, streaming (its cache has 32 MiB)", most, "MB", "resident at most"),
        Row("serve, 4 KiB anywhere", allocations(bench, "anywhere"), "allocations a read"),
        Row("serve, 128 KiB in a row", allocations(bench, "in a row"), "allocations a read"),
    ]
