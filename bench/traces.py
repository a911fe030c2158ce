"""What machines read of a disk, as `record.py` recorded it: an offset and a length in a line of traces/NAME.gz."""

import gzip

from harness import ROOT

TRACES = ROOT / "bench/traces"


def reads(name):
    """(offset, length) of each read, in order."""
    for line in gzip.open(TRACES / f"{name}.gz", "rt"):
        offset, length = map(int, line.split())
        yield offset, length


def pieces(name):
    """The same in reads of at most 4 KiB."""
    for offset, length in reads(name):
        for at in range(offset, offset + length, 4096):
            yield at, min(4096, offset + length - at)


def distinct(name):
    """How many bytes are read, each counted once."""
    total = end = 0
    for offset, length in sorted(reads(name)):
        total += max(0, offset + length - max(offset, end))
        end = max(end, offset + length)
    return total


def keep(name, trace):
    """Without a time in it, the same trace makes the same file."""
    with open(TRACES / f"{name}.gz", "wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as target:
        target.write("".join(f"{offset} {length}\n" for offset, length in trace).encode())
