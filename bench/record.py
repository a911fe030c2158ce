#!/usr/bin/env python3
"""Records what a machine reads of a disk, as root: bench/traces/NAME.gz, an offset and a length in a line.

    bench/record.py iso ext4 boot

`iso` (by fuseiso) and `ext4` mount an image of a tree, walk it and read its files; `boot` is QEMU, from an ISO of Debian's installer
to its first question.
"""

import contextlib
import gzip
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from harness import ROOT, output, running, uri, wait_for

TRACES = ROOT / "bench/traces"
# A tree of many small files, and some larger ones, that every Debian has.
TREE = "/usr/share/perl"
BOOTABLE = 'import { bootableIso } from "./tests/lib/images.mjs"; console.log(await bootableIso());'
GREETING = "Choose a mirror of the Debian archive"


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
    image = output("node", "--input-type=module", "-e", BOOTABLE, cwd=ROOT).strip()
    with logged(image, folder) as (path, trace):
        disk = f"file={uri(path)},format=raw,if=none,id=disk,readonly=on"
        with running("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2",
                     "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-drive", disk,
                     "-device", "ide-cd,drive=disk", stdout=subprocess.PIPE, text=True, errors="replace") as machine:
            for said in machine.stdout:
                if GREETING in said:
                    break
    return trace


def main():
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            trace = {"iso": iso, "ext4": ext4, "boot": boot}[name](pathlib.Path(folder))
        # Without a time in it, the same trace makes the same file.
        with open(TRACES / f"{name}.gz", "wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as target:
            target.write("".join(f"{offset} {length}\n" for offset, length in trace).encode())
        print(f"{name}: {len(trace)} reads, {sum(length for _, length in trace) >> 20} MiB")


if __name__ == "__main__":
    main()
