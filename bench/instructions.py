#!/usr/bin/env python3
"""Instructions that the protocol takes for a request, both ends together, counted by callgrind and compared with the
kept figures of `bench/instructions.json`. Counts don't depend on how busy a machine is; they do on the compiler.

    bench/instructions.py            fails where a figure grew by more than a tenth
    bench/instructions.py --accept   keeps the new figures
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "bench/instructions.json"
TOLERANCE = 0.10

# What is read, and with how many bytes a request.
LENGTHS = {"READ of 4 KiB": 4096, "READ of 1 MiB": 1 << 20}
FEW, MANY = 1000, 3000


def counted(program, requests, length):
    """Instructions of a whole run."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, str(requests), str(length)]
    run = subprocess.run(valgrind, check=True, capture_output=True, text=True)
    return int(re.search(r"Collected\s*:\s*(\d+)", run.stderr)[1])


def main():
    subprocess.run(["cargo", "build", "--quiet", "--release", "-p", "nbd", "--example", "joined"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = target / "release/examples/joined"
    figures = {
        what: round((counted(program, MANY, length) - counted(program, FEW, length)) / (MANY - FEW))
        for what, length in LENGTHS.items()
    }
    if "--accept" in sys.argv:
        KEPT.write_text(json.dumps(figures, indent=2) + "\n")
    kept = json.loads(KEPT.read_text())
    for what, figure in figures.items():
        print(f"{what}: {figure} instructions, {kept[what]} kept")
    grown = [what for what, figure in figures.items() if figure > kept[what] * (1 + TOLERANCE)]
    if grown:
        sys.exit(f"{', '.join(grown)}: more than {TOLERANCE:.0%} above what is kept. Make it cheaper, or keep the new "
                 "figures by `python3 bench/instructions.py --accept` and say why in the commit.")


if __name__ == "__main__":
    main()
