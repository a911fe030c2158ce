"""Several sessions at once, read by one program that takes what comes into memory that it uses again and again
(`reader`), and by fio, each of whose threads has 2 MiB of its own; large images; and a session that was read a lot.
"""

import contextlib
import json
import os
import statistics
import time

from harness import GIB, MIB, cpu_seconds, in_turn, nbdkit, noise, output, random_reads, serve, share, shared, uri
from report import Row

TITLE = "How it grows"

COUNTS = [1, 4, 16, 64]


def by_reader(bench, paths, seconds):
    """Bytes a second of each device, all read at once: in a row, over and over, 8 requests of 256 KiB each."""
    return [int(line) for line in output(bench.reader, seconds, *paths).split()]


def by_fio(_, paths, seconds):
    """The same, by one fio, whose threads share a process."""
    jobs = [word for path in paths for word in ("--name=r", f"--uri={uri(path)}")]
    text = output("fio", "--thread", "--ioengine=nbd", "--rw=read", "--bs=256k", "--iodepth=8", "--time_based",
                  f"--runtime={seconds}", "--output-format=json", *jobs)
    return [job["read"]["bw_bytes"] for job in json.loads(text[text.index("{"):])["jobs"]]


def rates(bench, read, count, image, seconds):
    """Bytes a second of each of so many sessions, read at once."""
    folder = bench.folder()
    named = {str(n): {"device": f"unix:{folder}/{n}.sock", "cache": 0} for n in range(count)}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, named, {"limits": {}}))
        server.folder = folder
        for name in named:
            stack.enter_context(share(bench, server, image, name))
        return read(bench, [server.device(name) for name in named], seconds)


def nbdkit_rates(bench, read, count, image, seconds):
    """The same of so many nbdkits."""
    with contextlib.ExitStack() as stack:
        return read(bench, [stack.enter_context(nbdkit(image, bench.folder()))[0] for _ in range(count)], seconds)


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


def at_once(bench, read, image, rounds, seconds):
    """For each number of sessions their rate together and the share of the slowest, and the rate of as many nbdkits; all
    take turns.
    """
    counts = COUNTS[:2] if bench.quick else COUNTS
    ours, theirs = {count: [] for count in counts}, {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            ours[count].append(rates(bench, read, count, image, seconds))
            theirs[count].append(nbdkit_rates(bench, read, count, image, seconds))

    def total(rounds):
        return statistics.median(map(sum, rounds)) / 1e6

    def fairness(rounds):
        return statistics.median(min(one) / statistics.mean(one) for one in rounds)

    return [(count, total(ours[count]), fairness(ours[count]), total(theirs[count])) for count in counts]


def grown(found, how="", target=None):
    """The rows of that."""
    best, their_best = max(total for _, total, _, _ in found), max(total for *_, total in found)

    def row(count, what, total, most, target=None):
        return Row(f"{count} {what}{'s' * (count > 1)} at once{how}", total, "MB/s", "the best of these", most, target)

    yield from (row(count, "session", total, best, target) for count, total, _, _ in found)
    yield from (row(count, "nbdkit", total, their_best) for count, *_, total in found)
    for count, _, fairness, _ in found[1:]:
        yield Row(f"the slowest of {count}, of their mean{how}", fairness, "", "", target=("at least", 0.5))


def run(bench):
    seconds = 1 if bench.quick else 4
    image = bench.place / "medium"
    noise(image, 64 * MIB)
    # Short and often: what is asked is a few hundredths, and the machine differs by more from one second to another.
    read = at_once(bench, by_reader, image, 1 if bench.quick else 7, 1 if bench.quick else 2)
    read_by_fio = at_once(bench, by_fio, image, 1 if bench.quick else 3, seconds)
    rows = [*grown(read, target=("at least", 0.9)), *grown(read_by_fio, how=", read by fio")]
    large = statistics.median(attach_seconds(bench, 100 * GIB) for _ in range(bench.rounds))
    small = statistics.median(attach_seconds(bench, MIB) for _ in range(bench.rounds))
    rows.append(Row("attaching 100 GiB, sparse", large * 1000, "ms", "1 MiB", small * 1000, ("at most", 1.5)))
    late, early = used_and_new(bench, seconds)
    rows.append(Row("serve's processor time of a read, after much was read", late, "µs", "of a new session", early,
                    ("at most", 1.1)))
    return rows
