"""QEMU boots Debian's installer from an ISO that `share` serves, up to its first question: over loopback, and over a line of
50 ms and 100 Mbit/s. What the second may take is what the first takes, and the bytes that the machine reads (those of the
recorded trace, each once) at the line's rate.
"""

from harness import in_turn, shared
from machine import booted, bootable_iso
from report import Row
from traces import distinct

TITLE = "Booting over a slow line"

SHAPE = (50, 100)


def run(bench):
    image = bootable_iso()

    def seconds(shape):
        with shared(bench, image, shape) as (path, *_):
            return booted(path)

    near, far = in_turn(1 if bench.quick else 3, lambda: seconds(None), lambda: seconds(SHAPE))
    needed = distinct("boot")
    fair = near + needed * 8 / (SHAPE[1] * 1e6)
    against = f"over loopback ({near:.1f} s) and {needed / 1e6:.0f} MB at line rate"
    return [Row(f"{SHAPE[0]} ms, {SHAPE[1]} Mbit/s", far, "s", against, fair, ("at most", 1.3))]
