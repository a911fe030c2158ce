#!/usr/bin/env python3
"""Instructions that a request takes: in the protocol, both ends together, and in a volume with its cache and its session,
with who serves them. They are counted by callgrind and compared with the kept figures of `bench/instructions.json`.
Counts don't depend on how busy a machine is; they do on the compiler.

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

# Examples, of which crates they are, and what they are told besides the number of requests.
PROGRAMS = {"joined": "nbd", "reads": "nbd-session"}
COUNTED = {
    "READ of 4 KiB": ("joined", "{} 4096"),
    "READ of 1 MiB": ("joined", "{} 1048576"),
    "volume, 4 KiB from memory": ("reads", "hit {}"),
    "volume, 4 KiB anywhere": ("reads", "miss {}"),
    "volume, 64 KiB in a row": ("reads", "row {}"),
}
# Far enough that the cache is full before the first, where it fills.
FEW, MANY = 3000, 5000


def counted(program, words):
    """Instructions of a whole run."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, *words.split()]
    run = subprocess.run(valgrind, check=True, capture_output=True, text=True)
    return int(re.search(r"Collected\s*:\s*(\d+)", run.stderr)[1])


def main():
    for example, crate in PROGRAMS.items():
        words = ["cargo", "build", "--quiet", "--release", "-p", crate, "--example", example]
        subprocess.run(words, cwd=ROOT, check=True)
    examples = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples"

    def per_request(example, words):
        few, many = (counted(examples / example, words.format(requests)) for requests in (FEW, MANY))
        return round((many - few) / (MANY - FEW))

    figures = {what: per_request(*how) for what, how in COUNTED.items()}
    if "--accept" in sys.argv:
        KEPT.write_text(json.dumps(figures, indent=2) + "\n")
    kept = json.loads(KEPT.read_text())
    for what, figure in figures.items():
        print(f"{what}: {figure} instructions, {kept.get(what, 'none')} kept")
    grown = [what for what, figure in figures.items() if figure > kept.get(what, 0) * (1 + TOLERANCE)]
    if grown:
        sys.exit(f"{', '.join(grown)}: more than {TOLERANCE:.0%} above what is kept. Make it cheaper, or keep the new "
                 "figures by `python3 bench/instructions.py --accept` and say why in the commit.")


if __name__ == "__main__":
    main()
