#!/usr/bin/env python3
"""Records what a machine reads of a disk, as root, in bench/traces/NAME.gz.

    bench/record.py iso ext4 boot

`iso` (by fuseiso) and `ext4` mount an image of a tree, walk it and read its files; `boot` is QEMU, from an ISO of Debian's installer
to its first question.
"""

import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile

from harness import output, running, uri, wait_for
from machine import bootable_iso, booted
from traces import keep

# A tree of many small files, and some larger ones, that every Debian has.
TREE = "/usr/share/perl"


@contextlib.contextmanager
def logged(image, folder):
    """nbdkit serving an image, and what it was asked for once it has ended."""
    path, log, trace = folder / "nbdkit.sock", folder / "log", []
    path.unlink(missing_ok=True)
    with running("nbdkit", "-f", "-r", "-U", path, "--filter=log", "file", image, f"logfile={log}"):
        wait_for(path.exists, "nbdkit's socket")
        yield path, trace
    for offset, length in re.findall(r"\bRead id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)", log.read_text()):
        trace.append((int(offset, 16), int(length, 16)))


def mounted(image, mount, folder):
    """What it takes to mount an image, walk it, and read its files."""
    with logged(image, folder) as (path, trace):
        disk, place = folder / "disk", folder / "mount"
        disk.touch()
        place.mkdir()
        with running("nbdfuse", disk, uri(path)):
            wait_for(lambda: disk.stat().st_size > 0, "nbdfuse's file")
            output(*mount(disk, place))
            output("sh", "-c", f"ls -lR {place} && find {place} -type f -exec cat {{}} + | md5sum")
            wait_for(lambda: subprocess.run(["umount", place]).returncode == 0, "the unmount")
            output("fusermount3", "-u", disk)
    return trace


def iso(folder):
    image = folder / "tree.iso"
    output("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", image, TREE)
    return mounted(image, lambda disk, place: ["fuseiso", disk, place], folder)


def ext4(folder):
    image = folder / "tree.ext4"
    output("mkfs.ext4", "-q", "-d", TREE, image, "192M")
    return mounted(image, lambda disk, place: ["mount", "-o", "loop,ro", disk, place], folder)


def boot(folder):
    with logged(bootable_iso(), folder) as (path, trace):
        booted(path)
    return trace


def main():
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            trace = {"iso": iso, "ext4": ext4, "boot": boot}[name](pathlib.Path(folder))
        keep(name, trace)
        print(f"{name}: {len(trace)} reads, {sum(length for _, length in trace) >> 20} MiB")


if __name__ == "__main__":
    main()
