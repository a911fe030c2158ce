"""A file that is chosen in Chromium's page; the device is a Unix socket. *The browser's ceiling* is a bare page that reads
windows of 4 MiB by slices, one ahead, and sends them to a sink that passes them on. *A slice each* is a page that reads
a slice of the file for each request, behind a server without a cache. The reads of 4 KiB are those of recorded traces
(`bench/traces`, made by `bench/record.py`), each asked for once the last one has come.
"""

import contextlib
import itertools
import random
import socket
import subprocess
import time

from chromium import chromium, pages, way
from harness import PYTHON, Failed, copy_rate, in_turn, output, running, serve, uri, wait_for
from report import Row
from traces import pieces

TITLE = "Through Chromium"

TRACED = {
    "iso": "an ISO is mounted and read",
    "ext4": "an ext4 image is mounted and read",
    "boot": "QEMU boots an installer",
}

PATIENCE = 60  # seconds, for a page that may have stopped


def drain(listener, size):
    """Seconds from a connection's coming to its last byte."""
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    start, got, room = time.monotonic(), 0, bytearray(1 << 20)
    with connection:
        while got < size:
            count = connection.recv_into(room)
            if count == 0:
                raise Failed(f"the page sent {got} of {size} bytes")
            got += count
    return time.monotonic() - start


def ceiling(bench, tab, base):
    """Bytes a second of a page that only sends, into a sink that only passes on."""
    path = bench.folder() / "drain.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        with running(bench.sink, path, stdout=subprocess.PIPE) as sink:
            port = int(sink.stdout.readline())
            with way(tab, base, "ceiling", bench.image, url=f"ws://127.0.0.1:{port}/"):
                return bench.size / drain(listener, bench.size)


@contextlib.contextmanager
def ours(bench, tab):
    """The device of the page that the program serves."""
    with serve(bench) as server, tab.page(server.address):
        ready = "document.querySelector('#configurations-note').textContent !== 'Asking the machine…'"
        wait_for(lambda: tab.evaluate(ready), "the page")
        tab.choose("#file", bench.image)
        wait_for(lambda: tab.evaluate("!document.querySelector('#go').disabled"), "the page's start button")
        tab.click("#go")
        yield server.device()


@contextlib.contextmanager
def bare(bench, tab, base, name, cache=None):
    """The device of one of our own pages, by default with the usual cache on the machine's side."""
    origin = base.split("/bench")[0]
    with serve(bench, settings={"origins": [origin]}, cache=cache) as server:
        url = f"ws://127.0.0.1:{server.port}/nbd/0"
        with way(tab, base, name, bench.image, url=url, token=server.token):
            yield server.device()


def scattered(size, seed):
    """Reads of 4 KiB anywhere, without an end."""
    chance = random.Random(seed)
    while True:
        yield chance.randrange(size // 4096) * 4096, 4096


REPLAY = """
import sys, time, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
reads = [tuple(map(int, line.split())) for line in sys.stdin]
start = time.monotonic()
for offset, length in reads:
    handle.pread(length, offset)
print(len(reads) / (time.monotonic() - start))
"""


def replay(path, reads):
    """Reads a second, each asked for once the last one has come."""
    lines = "".join(f"{offset} {length}\n" for offset, length in reads)
    return float(output(PYTHON, "-c", REPLAY, uri(path), input=lines))


def sequential(bench, tab, base):
    def copied():
        with ours(bench, tab) as device:
            return copy_rate(device, bench.size) / 1e6

    rate, limit = in_turn(bench.rounds, copied, lambda: ceiling(bench, tab, base) / 1e6)
    return Row("nbdcopy, 1 GiB in a row", rate, "MB/s", "the browser's ceiling", limit, ("at least", 0.9))


def small(bench, tab, base):
    """Reads of 4 KiB; each round is a new session, whose caches are empty."""
    count = 1000 if bench.quick else 5000

    def page(reads):
        with ours(bench, tab) as device:
            return replay(device, reads)

    def slices(reads):
        with bare(bench, tab, base, "naive", cache=0) as device:
            return replay(device, reads)

    def library(reads):
        with bare(bench, tab, base, "library") as device:
            return replay(device, reads)

    for trace, what in TRACED.items():
        reads = list(itertools.islice(pieces(trace), count))
        rate, simple = in_turn(1 if bench.quick else 3, lambda: page(reads), lambda: slices(reads))
        yield Row(f"4 KiB reads: {what}", rate, "reads/s", "a slice each", simple, ("at least", 10))
    # As many as fill every cache, and go on: nothing but that may make up for what looking there takes. And they are so
    # close to each other that three rounds are too few.
    reads = list(itertools.islice(scattered(bench.size, 1), 3 * count))
    rate, simple, alone = in_turn(1 if bench.quick else 5, lambda: page(reads), lambda: slices(reads), lambda: library(reads))
    yield Row("4 KiB reads: anywhere in 1 GiB", rate, "reads/s", "a slice each", simple, ("at least", 1))
    yield Row("the same by nbd.js alone, in a page that shows nothing", alone, "reads/s", "a slice each", simple, ("at least", 1))


def run(bench):
    with chromium() as tab, pages() as base:
        return [sequential(bench, tab, base), *small(bench, tab, base)]
