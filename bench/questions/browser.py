"""A file that is chosen in Chromium's page, its device a Unix socket."""

import contextlib
import socket
import subprocess
import time

from chromium import chromium, pages, way
from harness import Failed, copy_rate, in_turn, running, serve, wait_for
from report import Row

TITLE = "Through Chromium"

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
    """The device of one of our own pages, by default without a cache on the machine's side."""
    origin = base.split("/bench")[0]
    with serve(bench, settings={"origins": [origin]}, cache=cache) as server:
        url = f"ws://127.0.0.1:{server.port}/nbd/0"
        with way(tab, base, name, bench.image, url=url, token=server.token):
            yield server.device()


def run(bench):
    with chromium() as tab, pages() as base:
        def copied():
            with ours(bench, tab) as device:
                return copy_rate(device, bench.size) / 1e6

        def most():
            return ceiling(bench, tab, base) / 1e6

        rate, limit = in_turn(bench.rounds, copied, most)
    return [Row("nbdcopy, 1 GiB in a row", rate, "MB/s", "the browser's ceiling", limit, ("at least", 0.9))]
