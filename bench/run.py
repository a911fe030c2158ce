#!/usr/bin/env python3
"""Measures nbd-proxy beside what Debian packages, and writes docs/performance.md.

    bench/run.py                     every question, then the page
    bench/run.py native cost         some of them; the page keeps the figures of the others
    bench/run.py --quick browser     fewer rounds on less; nothing is written

A figure that misses its target is printed as it is. Only what can't be measured is an error.
"""

import argparse
import datetime
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import report
from harness import ROOT, Bench, Failed, output, warn
from questions import boot, browser, cost, growth, line, native, size

QUESTIONS = {
    "browser": browser,
    "native": native,
    "line": line,
    "boot": boot,
    "cost": cost,
    "size": size,
    "growth": growth,
}


def build():
    """The programs that are measured, as they are released."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    tools = ["sink", "reader", "counting"]
    examples = " ".join(f"--example {name}" for name in tools)
    for words in ["--release", f"--release {examples}", "--profile small --no-default-features"]:
        output("cargo", "build", "--quiet", "-p", "nbd-proxy", *words.split(), cwd=ROOT, timeout=3600)
    tools = [target / "release/examples" / name for name in tools]
    return target / "release/nbd-proxy", *tools, target / "small/nbd-proxy"


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    processors = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    name = model[1] if model else platform.machine()
    return f"{processors} × {name}, {memory:.0f} GiB, Linux {platform.release()}"


def commit():
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "no commit"


def ask(name, bench, revision):
    """One question's table; whether it could be answered."""
    question, start = QUESTIONS[name], time.monotonic()
    load = os.getloadavg()[0]
    try:
        rows = question.run(bench)
    except (Failed, OSError, subprocess.SubprocessError, KeyError, ValueError):
        warn(f"{name} could not be measured:\n{traceback.format_exc()}")
        return False
    took = time.monotonic() - start
    print(f"\n{question.TITLE}  ({took:.0f} s, load {load:.1f} before)\n\n{report.table(rows)}", flush=True)
    if not bench.quick:
        when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        report.keep(name, rows, f"{when}, commit {revision}", machine(), f"load {load:.1f} before, {took:.0f} s")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="one round on less, and nothing is written")
    parser.add_argument("--page", action="store_true", help="only write the page from the kept figures")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: the questions are {', '.join(QUESTIONS)}")
    if options.page:
        report.write(QUESTIONS)
        return
    # Whoever is measured is ended with it, as by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    place = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        print(machine(), flush=True)
        bench = Bench(*build(), options.quick, place)
        revision = commit()  # Before figures are kept, which changes a file.
        answered = [ask(name, bench, revision) for name in options.questions or QUESTIONS]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if not options.quick:
        report.write(QUESTIONS)
    sys.exit(0 if all(answered) else 1)


if __name__ == "__main__":
    main()
