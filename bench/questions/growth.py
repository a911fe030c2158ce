"""Several sessions at once, each read by a reader of its own; large images; and a session that was read a lot."""

import contextlib
import json
import os
import statistics
import time

from harness import GIB, MIB, cpu_seconds, in_turn, nbdkit, noise, output, random_reads, serve, share, shared, uri
from report import Row

TITLE = "How it grows"

COUNTS = [1, 4, 16, 64]


def together(paths, seconds):
    """Bytes a second of each device, all read at once by one fio: in a row, over and over, 8 requests of 256 KiB each.
    Its threads share a process, so that more of them cost the machine little besides what they read.
    """
    jobs = [word for path in paths for word in ("--name=r", f"--uri={uri(path)}")]
    text = output("fio", "--thread", "--ioengine=nbd", "--rw=read", "--bs=256k", "--iodepth=8", "--time_based",
                  f"--runtime={seconds}", "--output-format=json", *jobs)
    return [job["read"]["bw_bytes"] for job in json.loads(text[text.index("{"):])["jobs"]]


def rates(bench, count, image, seconds):
    """Bytes a second of each of so many sessions, read at once."""
    folder = bench.folder()
    named = {str(n): {"device": f"unix:{folder}/{n}.sock", "cache": 0} for n in range(count)}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, named, {"limits": {}}))
        server.folder = folder
        for name in named:
            stack.enter_context(share(bench, server, image, name))
        return together([server.device(name) for name in named], seconds)


def nbdkit_rates(bench, count, image, seconds):
    """The same of so many nbdkits."""
    with contextlib.ExitStack() as stack:
        return together([stack.enter_context(nbdkit(image, bench.folder()))[0] for _ in range(count)], seconds)


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


def used_and_new(bench, seconds):
    """The processor time of a read of a session that was read a lot, and of new ones, in turn."""
    with shared(bench, bench.image) as (path, pid, _):
        for _ in range(1 if bench.quick else 5):
            random_reads(path, 16, seconds)

        def new():
            with shared(bench, bench.image) as (other, its, _):
                return microseconds(other, its, seconds)

        return in_turn(bench.rounds, lambda: microseconds(path, pid, seconds), new)


def run(bench):
    seconds = 1 if bench.quick else 4
    image = bench.place / "medium"
    noise(image, 64 * MIB)
    counts = COUNTS[:2] if bench.quick else COUNTS
    totals, theirs, fairness = {}, {}, {}
    for count in counts:
        each, others = [], []
        for _ in range(1 if bench.quick else 3):
            each.append(rates(bench, count, image, seconds))
            others.append(nbdkit_rates(bench, count, image, seconds))
        totals[count] = statistics.median(map(sum, each)) / 1e6
        theirs[count] = statistics.median(map(sum, others)) / 1e6
        fairness[count] = statistics.median(min(one) / statistics.mean(one) for one in each)
    best, their_best = max(totals.values()), max(theirs.values())
    rows = [Row(f"{count} session{'s' * (count > 1)} at once", totals[count], "MB/s", "the best of these", best, ("at least", 0.9))
            for count in counts]
    rows += [Row(f"{count} nbdkit{'s' * (count > 1)} at once", theirs[count], "MB/s", "the best of these", their_best)
             for count in counts]
    rows += [Row(f"the slowest of {count}, of their mean", fairness[count], "", "", target=("at least", 0.5))
             for count in counts[1:]]
    large = statistics.median(attach_seconds(bench, 100 * GIB) for _ in range(bench.rounds))
    small = statistics.median(attach_seconds(bench, MIB) for _ in range(bench.rounds))
    rows.append(Row("attaching 100 GiB, sparse", large * 1000, "ms", "1 MiB", small * 1000, ("at most", 1.5)))
    late, early = used_and_new(bench, seconds)
    rows.append(Row("serve's processor time of a read, after much was read", late, "µs", "of a new session", early,
                    ("at most", 1.1)))
    return rows
