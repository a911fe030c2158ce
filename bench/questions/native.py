"""`share` to `serve` to a Unix socket, without a browser, beside servers that read the same file directly. Both are
read by nbdcopy, and by fio's NBD engine. At last the image as a mounted file (`fuse:`), beside nbdfuse.
"""

import contextlib

from harness import (
    copy_rate,
    depth_one,
    fuse_device,
    in_turn,
    nbdfuse,
    nbdkit,
    qemu_nbd,
    random_reads,
    read_rate,
    shared,
)
from report import Row

TITLE = "Natively"

HALF = ("at least", 0.5)


def run(bench):
    seconds = 1 if bench.quick else 3
    measures = [
        ("nbdcopy", "MB/s", HALF, lambda path: copy_rate(path, bench.size) / 1e6),
        ("128 KiB in a row, depth 1", "MB/s", None, lambda path: depth_one(path, 128 << 10, bench.size) / 1e6),
        ("random 4 KiB, depth 1", "reads/s", HALF, lambda path: random_reads(path, 1, seconds)),
        ("random 4 KiB, depth 16", "reads/s", HALF, lambda path: random_reads(path, 16, seconds)),
    ]
    rows, folder = [], bench.folder()
    with contextlib.ExitStack() as stack:
        path, *_ = stack.enter_context(shared(bench, bench.image))
        nbdkit_path, _ = stack.enter_context(nbdkit(bench.image, folder))
        qemu_path, _ = stack.enter_context(qemu_nbd(bench.image, folder))
        for what, unit, target, measure in measures:
            each = [lambda at=at: measure(at) for at in (path, nbdkit_path, qemu_path)]
            ours, theirs, qemus = in_turn(bench.rounds, *each)
            rows.append(Row(what, ours, unit, "nbdkit", theirs, target))
            rows.append(Row(f"{what}, beside qemu-nbd", ours, unit, "qemu-nbd", qemus))
        secure, *_ = stack.enter_context(shared(bench, bench.image, tls=True))
        ours, clear = in_turn(bench.rounds, *[lambda at=at: copy_rate(at, bench.size) / 1e6 for at in (secure, path)])
        rows.append(Row("nbdcopy, over TLS", ours, "MB/s", "without TLS", clear))
    with nbdfuse(bench) as theirs, fuse_device(bench) as ours:
        mounted = in_turn(bench.rounds, *(lambda at=at: read_rate(at, bench.size) / 1e6 for at in (ours, theirs)))
    rows.append(Row("a mounted file, dd bs=1M", mounted[0], "MB/s", "nbdfuse of nbdkit", mounted[1]))
    return rows
