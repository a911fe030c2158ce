"""What is tested here; `cargo xtask test package` says where it built it."""

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = os.environ.get("NBD_PROXY", str(ROOT / "target/debug/nbd-proxy"))

#: Where `cargo xtask man` writes.
MANUAL = pathlib.Path(os.environ.get("MANUAL", ROOT / "target/manual"))


def output(*command, **options):
    """What a program prints that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, **{"text": True, **options}).stdout


def commands():
    """The program's commands, by its help."""
    listed = output(PROGRAM, "--help").split("Commands:\n")[1].split("\n\n")[0]
    return re.findall(r"^  (\S+)", listed, re.MULTILINE)
