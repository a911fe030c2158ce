"""docs/openbmc.md and packaging/openbmc say what is so."""

import hashlib
import json
import re
from pathlib import Path

import harness
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/openbmc.md"


def test_the_configuration_that_the_recipe_installs_is_understood(scope):
    setting = scope.configure()
    config = ROOT / "packaging/openbmc/config.json"
    done = harness.run(harness.PROGRAM, "--config", config, "--metadata", env=setting.env)
    assert list(json.loads(done)) == ["0", "1"]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\btest_\w+(?!\.py)\b", PAGE.read_text()))))
def test_every_test_that_the_page_names_exists(name):
    tests = [file.read_text() for file in (ROOT / "tests/peers").glob("test_*.py")]
    assert any(f"def {name}(" in text for text in tests) or (ROOT / f"tests/peers/{name}.py").exists()


def test_every_test_of_the_guest_that_the_page_names_exists():
    named = re.findall(r'"([\w ,-]{20,})"', PAGE.read_text().replace("\n", " "))
    tests = "".join(file.read_text() for file in (ROOT / "tests/guest").glob("*.test.mjs"))
    assert len(named) >= 3
    assert [name for name in named if name not in tests] == []


def test_the_recipe_names_what_is_there():
    recipe = (ROOT / "packaging/openbmc/nbd-proxy_git.bb").read_text()
    for path in re.findall(r"\$\{S\}/(\S+)", recipe):
        assert (ROOT / path).is_file(), path
    (licence,) = re.findall(r"file://LICENSE;md5=(\w+)", recipe)
    assert hashlib.md5((ROOT / "LICENSE").read_bytes()).hexdigest() == licence
    assert "--no-default-features" in recipe
    assert not re.search(r"^R?DEPENDS.*(nbd-client|nbd|udev|json-c)", recipe, re.MULTILINE)


def test_the_filter_has_neither_web_server_nor_tls_nor_fuse():
    tree = harness.run("cargo", "tree", "--quiet", "-p", "nbd-proxy", "--no-default-features", "-e", "normal", cwd=ROOT)
    crates = set(re.findall(r"([\w-]+) v\d", tree))
    assert "tokio" in crates
    assert not crates & {"hyper", "rustls", "tokio-rustls", "ring", "rcgen", "fuser", "udev", "libudev-sys"}
