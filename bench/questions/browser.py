"""A file that is chosen in Chromium's page; the device is a Unix socket. *The browser's ceiling* is a bare page that reads
windows of 4 MiB by slices, one ahead, and sends them to a sink that passes them on. *A slice each* is a page that reads
a slice of the file for each request, behind a server without a cache. The reads of 4 KiB are those of recorded traces
(`bench/traces`, made by `bench/record.py`), each asked for once the last one has come; and those anywhere are made of
sessions side by side, a hundred of each in turn.
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


def ceiling(bench, browser, base):
    """Bytes a second of a page that only sends, into a sink that only passes on."""
    path = bench.folder() / "drain.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        with running(bench.sink, path, stdout=subprocess.PIPE) as sink:
            port = int(sink.stdout.readline())
            with way(browser, base, "ceiling", bench.image, url=f"ws://127.0.0.1:{port}/"):
                return bench.size / drain(listener, bench.size)


@contextlib.contextmanager
def ours(bench, browser):
    """The device of the page that the program serves."""
    with serve(bench) as server, browser.page(server.address) as page:
        ready = "document.querySelector('#configurations-note').textContent !== 'Asking the machine…'"
        wait_for(lambda: page.evaluate(ready), "the page")
        page.choose("#file", bench.image)
        wait_for(lambda: page.evaluate("!document.querySelector('#go').disabled"), "the page's start button")
        page.click("#go")
        yield server.device()


@contextlib.contextmanager
def bare(bench, browser, base, name, cache=None):
    """The device of one of our own pages, by default with the usual cache on the machine's side."""
    origin = base.split("/bench")[0]
    with serve(bench, settings={"origins": [origin]}, cache=cache) as server:
        url = f"ws://127.0.0.1:{server.port}/nbd/0"
        with way(browser, base, name, bench.image, url=url, token=server.token):
            yield server.device()


def scattered(size, seed):
    """Reads of 4 KiB anywhere, without an end."""
    chance = random.Random(seed)
    while True:
        yield chance.randrange(size // 4096) * 4096, 4096


REPLAY = """
import sys, time, nbd
turn, *uris = sys.argv[1:]
turn = int(turn)
handles = [nbd.NBD() for _ in uris]
for handle, uri in zip(handles, uris):
    handle.connect_uri(uri)
    handle.pread(512, 0)  # once the page has settled
reads = [tuple(map(int, line.split())) for line in sys.stdin]
took = [0] * len(handles)
for first in range(0, len(reads), turn):
    for number, handle in enumerate(handles):
        start = time.monotonic()
        for offset, length in reads[first:first + turn]:
            handle.pread(length, offset)
        took[number] += time.monotonic() - start
print(*(len(reads) / seconds for seconds in took))
"""


def replay(paths, reads, turn=None):
    """Reads a second of each device, each asked for once the last one has come; so many of each in turn, by default all."""
    lines = "".join(f"{offset} {length}\n" for offset, length in reads)
    words = output(PYTHON, "-c", REPLAY, turn or len(reads), *map(uri, paths), input=lines)
    return [float(word) for word in words.split()]


def sequential(bench, browser, base):
    def copied():
        with ours(bench, browser) as device:
            return copy_rate(device, bench.size) / 1e6

    rate, limit = in_turn(bench.rounds, copied, lambda: ceiling(bench, browser, base) / 1e6)
    return Row("nbdcopy, 1 GiB in a row", rate, "MB/s", "the browser's ceiling", limit, ("at least", 0.9))


def traced(bench, browser, base, name):
    """The reads a second of a trace, of our page and of a slice each; each round is a new session, whose caches are empty."""
    reads = list(itertools.islice(pieces(name), 1000 if bench.quick else 5000))

    def page():
        with ours(bench, browser) as device:
            return replay([device], reads)[0]

    def slices():
        with bare(bench, browser, base, "naive", cache=0) as device:
            return replay([device], reads)[0]

    return in_turn(1 if bench.quick else 3, page, slices)


def anywhere(bench, browser, base):
    """The reads a second anywhere, of our page, of nbd.js alone and of a slice each. They are so close to each other that
    they take turns of a tenth of a second, and go on for long after all caches are full.
    """
    reads = list(itertools.islice(scattered(bench.size, 1), 2000 if bench.quick else 20000))
    with ours(bench, browser) as page, bare(bench, browser, base, "library") as library, \
            bare(bench, browser, base, "naive", cache=0) as slices:
        return replay([page, library, slices], reads, turn=100)


def small(bench, browser, base):
    """Reads of 4 KiB."""
    def row(what, rate, simple, least):
        return Row(what, rate, "reads/s", "a slice each", simple, ("at least", least))

    for name, what in TRACED.items():
        yield row(f"4 KiB reads: {what}", *traced(bench, browser, base, name), 10)
    page, library, slices = anywhere(bench, browser, base)
    yield row("4 KiB reads: anywhere in 1 GiB", page, slices, 1)
    yield row("the same by nbd.js alone, in a page that shows nothing", library, slices, 1)


def run(bench):
    with chromium() as browser, pages() as base:
        return [sequential(bench, browser, base), *small(bench, browser, base)]
