"""The Debian package, installed into a root of its own, upgraded, removed and purged."""

import os
import subprocess

import pytest

import places


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    command = [places.ROOT / "packaging/debian/build", places.PROGRAM, places.MANUAL, folder]
    # A debug build is large, and the test is in a hurry.
    places.output(*command, env={**os.environ, "DPKG_DEB_COMPRESSOR_TYPE": "none"})
    [file] = folder.iterdir()
    return file


@pytest.fixture
def dpkg(tmp_path):
    """dpkg on a new root, where nothing else is installed."""
    root = tmp_path / "root"
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"]:
        (root / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()

    def run(*words):
        command = ["dpkg", f"--root={root}", "--force-depends,not-root,script-chrootless,confdef", "--log=/dev/null", *words]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return root

    return run


def test_it_says_what_it_is_and_needs(package):
    def field(name):
        return places.output("dpkg-deb", "--field", package, name).strip()

    assert field("Package") == "nbd-proxy"
    assert "libc6 (>= " in field("Depends")
    assert field("Version") == places.output(places.PROGRAM, "--version").split()[1]


def test_what_is_installed_runs_with_the_configuration_that_comes_with_it(package, dpkg):
    root = dpkg("--install", str(package))
    program = root / "usr/bin/nbd-proxy"
    metadata = places.output(program, "--config", root / "etc/nbd-proxy/config.json", "--metadata")
    assert metadata.strip() == '{"0":null}'
    assert len(list((root / "usr/share/man/man1").iterdir())) == len(places.commands()) + 1
    assert (root / "usr/share/bash-completion/completions/nbd-proxy").exists()


def test_an_upgrade_keeps_the_configuration_and_a_purge_leaves_nothing(package, dpkg):
    root = dpkg("--install", str(package))
    config = root / "etc/nbd-proxy/config.json"
    config.write_text('{"configurations": {"mine": {"device": "unix:"}}}')
    state = root / "var/lib/nbd-proxy"
    state.mkdir(parents=True)
    dpkg("--install", str(package))
    assert "mine" in config.read_text()
    dpkg("--remove", "nbd-proxy")
    assert config.exists() and state.exists() and not (root / "usr/bin/nbd-proxy").exists()
    dpkg("--purge", "nbd-proxy")
    assert not config.exists() and not state.exists()
