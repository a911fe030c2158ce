"""docs/security.md links each promise to tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/security.md"
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(?:#[^)]*)?\)")
"""A link within the repository: its text, and its path as seen from docs."""
ATTACKS = ROOT / "crates/nbd-proxy/tests/serve/attacks"


@pytest.mark.parametrize("text, path", sorted(set(LINK.findall(PAGE.read_text()))))
def test_what_the_page_links_to_exists_and_has_tests(text, path):
    target = (PAGE.parent / path).resolve()
    assert target.exists()
    if target.suffix == ".rs" and "tests" in target.parts:
        assert re.search(r"#\[(tokio::)?test", target.read_text()), f"{text} has no test"
    if target.suffix == ".py":
        assert "\ndef test_" in target.read_text(), f"{text} has no test"


def promises():
    section = PAGE.read_text().split("\n## What is promised\n")[1].split("\n## ")[0]
    return re.split(r"\n(?=\*\*)", section)[1:]


@pytest.mark.parametrize("section", promises(), ids=lambda section: section.splitlines()[0])
def test_every_promise_links_to_its_tests(section):
    tests = [path for _, path in LINK.findall(section) if "/tests/" in path or path.startswith("../xtask/")]
    assert tests, f"no test: {section.splitlines()[0]}"


def test_the_page_links_to_every_file_of_attacks():
    linked = {Path(path).name for _, path in LINK.findall(PAGE.read_text())}
    files = {file.name for file in ATTACKS.glob("*.rs") if re.search(r"#\[(tokio::)?test", file.read_text())}
    assert files <= linked, f"not linked to: {sorted(files - linked)}"
