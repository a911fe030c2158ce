"""Several sessions at once, each read by a reader of its own; large images; and a session that was read a lot."""

import contextlib
import os
import statistics
import subprocess
import time

from harness import GIB, MIB, PYTHON, cpu_seconds, noise, random_reads, serve, share, shared, uri
from report import Row

TITLE = "How it grows"

COUNTS = [1, 4, 16, 64]

# Reads in a row, over and over, with 8 requests of 256 KiB in flight, from its start line until the seconds are over.
READER = """
import sys, time, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
size, step, depth = handle.get_size(), 1 << 18, 8
print("ready", flush=True)
sys.stdin.readline()
until, at, got, waiting = time.monotonic() + float(sys.argv[2]), 0, 0, []
while time.monotonic() < until:
    while len(waiting) < depth:
        waiting.append(handle.aio_pread(nbd.Buffer(step), at))
        at = (at + step) % size
    handle.poll(-1)
    while waiting and handle.aio_command_completed(waiting[0]):
        waiting.pop(0)
        got += step
print(got)
"""


def rates(bench, count, image, seconds):
    """Bytes a second of each of so many sessions, read at once."""
    folder = bench.folder()
    named = {str(n): {"device": f"unix:{folder}/{n}.sock", "cache": 0} for n in range(count)}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, named, {"limits": {}}))
        server.folder = folder
        for name in named:
            stack.enter_context(share(bench, server, image, name))
        readers = []
        for name in named:
            words = [PYTHON, "-c", READER, uri(server.device(name)), str(seconds)]
            readers.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for reader in readers:
            reader.stdout.readline()
        for reader in readers:
            reader.stdin.write("go\n")
            reader.stdin.flush()
        return [int(reader.communicate(timeout=120)[0]) / seconds for reader in readers]


def attach_seconds(bench, size):
    image = bench.folder() / "sparse"
    image.touch()
    os.truncate(image, size)
    start = time.monotonic()
    with shared(bench, image):
        return time.monotonic() - start


def microseconds(path, pid, seconds):
    """Of a process's processor time for each of many random reads of 4 KiB."""
    before = cpu_seconds(pid)
    count = random_reads(path, 4, seconds) * seconds
    return (cpu_seconds(pid) - before) / count * 1e6


def run(bench):
    seconds = 1 if bench.quick else 4
    image = bench.place / "medium"
    noise(image, 64 * MIB)
    counts = COUNTS[:2] if bench.quick else COUNTS
    totals, fairness = {}, {}
    for count in counts:
        each = [rates(bench, count, image, seconds) for _ in range(1 if bench.quick else 3)]
        totals[count] = statistics.median(sum(one) for one in each) / 1e6
        fairness[count] = statistics.median(min(one) / statistics.mean(one) for one in each)
    best = max(totals.values())
    rows = [Row(f"{count} session{'s' * (count > 1)} at once", totals[count], "MB/s", "the best of these", best, ("at least", 0.9))
            for count in counts]
    rows += [Row(f"the slowest of {count}, of their mean", fairness[count], "", "", target=("at least", 0.5))
             for count in counts[1:]]
    large = statistics.median(attach_seconds(bench, 100 * GIB) for _ in range(bench.rounds))
    small = statistics.median(attach_seconds(bench, MIB) for _ in range(bench.rounds))
    rows.append(Row("attaching 100 GiB, sparse", large * 1000, "ms", "1 MiB", small * 1000, ("at most", 1.5)))
    with shared(bench, bench.image) as (path, pid, _):
        early = microseconds(path, pid, seconds)
        for _ in range(1 if bench.quick else 5):
            random_reads(path, 16, seconds)
        late = microseconds(path, pid, seconds)
    rows.append(Row("serve's processor time of a read, after much was read", late, "µs", "at first", early,
                    ("at most", 1.1)))
    return rows
