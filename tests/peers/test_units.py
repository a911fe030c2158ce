"""The systemd units, as systemd judges them."""

import pathlib
import shutil
import subprocess

import harness
import pytest

UNITS = pathlib.Path(__file__).parents[2] / "packaging" / "systemd"

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")


def systemd_analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", "--man=no", "--no-pager", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("unit, most", [("nbd-proxy.service", 4.5), ("nbd-proxy-sockets.service", 2.5)])
def test_a_unit_is_exposed_no_more_than_it_must_be(unit, most):
    judged = systemd_analyze("security", "--offline=true", f"--threshold={most * 10:.0f}", UNITS / unit)
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr


def test_the_units_are_understood_to_the_letter(tmp_path):
    units = []
    for unit in sorted(UNITS.iterdir()):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/usr/bin/nbd-proxy", str(harness.PROGRAM)))
        units.append(copy)
    judged = systemd_analyze("verify", *units)
    assert (judged.returncode, judged.stderr) == (0, "")
