"""Over a slow line, which delays and limits each way (`tests/lib/line.mjs`): a reader that has one request of 128 KiB in
flight, and `dd bs=1M` without O_DIRECT on a loop device. What the line carries, less what frames and headers take of it,
is all that anybody could get.

The kernel's NBD driver is in a guest whose processor is emulated, and too slow for such lines. What can be seen there is
how much a session has on its way for a reader in a row: at least what fills 50 ms at 100 Mbit/s (0.6 MB), and at
1000 Mbit/s (6.3 MB). `tests/guest/device.test.mjs` counts it over a slower line that holds as much.
"""

import contextlib
import os
import statistics

from harness import MIB, Failed, depth_one, line_to, serve, share, shared, timed
from report import Row

TITLE = "Over a slow line"

# (round trip in ms, Mbit/s), and the share of it that is asked for.
LINES = [((50, 100), 0.9), ((50, 1000), 0.8), ((200, 20), 0.9)]


def amount(bench, rate):
    """Bytes that take about ten seconds, three in a quick run."""
    return int(rate * 1e6 / 8 * (3 if bench.quick else 10)) // MIB * MIB


def socket_rate(bench, shape):
    with shared(bench, bench.image, shape) as (path, *_):
        return depth_one(path, 128 << 10, min(amount(bench, shape[1]), bench.size))


def loop_rate(bench, shape):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, {"0": {"device": "loop:"}}))
        port = stack.enter_context(line_to(server.port, shape))
        stack.enter_context(share(bench, server, bench.image, port=port))
        count = min(amount(bench, shape[1]), bench.size) // MIB
        device = server.attached()
        return count * MIB / timed("dd", f"if={device}", "of=/dev/null", "bs=1M", f"count={count}")


def middle(bench, rate):
    """The median of several cold readers, in Mbit/s: each has a session of its own."""
    return statistics.median(rate() for _ in range(1 if bench.quick else 3)) * 8 / 1e6


def run(bench):
    if not os.access("/dev/loop-control", os.W_OK):
        raise Failed("/dev/loop-control can't be written to: run this as root")
    rows = []
    for shape, share_of in LINES:
        name = f"{shape[0]} ms, {shape[1]} Mbit/s"
        got = middle(bench, lambda at=shape: socket_rate(bench, at))
        rows.append(Row(f"{name}: unix:, 128 KiB, depth 1", got, "Mbit/s", "the line", shape[1], ("at least", share_of)))
        got = middle(bench, lambda at=shape: loop_rate(bench, at))
        rows.append(Row(f"{name}: loop:, dd bs=1M", got, "Mbit/s", "the line", shape[1], ("at least", share_of)))
    return rows
