"""A machine that boots Debian's installer from an NBD socket, in QEMU without KVM."""

import subprocess
import threading
import time

from harness import ROOT, Failed, output, running, uri

MAKE = 'import { bootableIso } from "./tests/lib/images.mjs"; console.log(await bootableIso());'
GREETING = "Choose a mirror of the Debian archive"

PATIENCE = 300  # seconds, for a machine that may hang


def bootable_iso():
    """The path of an ISO of the installer, which is made once."""
    return output("node", "--input-type=module", "-e", MAKE, cwd=ROOT).strip()


def booted(path):
    """Seconds from power on to the installer's first question."""
    disk = f"file={uri(path)},format=raw,if=none,id=disk,readonly=on"
    start = time.monotonic()
    with running("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2",
                 "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-drive", disk,
                 "-device", "ide-cd,drive=disk", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                 text=True, errors="replace") as machine:
        overdue = threading.Timer(PATIENCE, machine.kill)
        overdue.start()
        try:
            if not any(GREETING in said for said in machine.stdout):
                raise Failed(f"the machine did not get to the installer's first question within {PATIENCE} s")
            return time.monotonic() - start
        finally:
            overdue.cancel()
