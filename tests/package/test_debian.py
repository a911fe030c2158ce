"""The Debian package, installed into a root of its own, upgraded, removed and purged."""

import os
import subprocess

import pytest

import places


def build(folder, maintainer):
    command = [places.ROOT / "packaging/debian/build", places.PROGRAM, places.MANUAL, folder]
    environment = {name: value for name, value in os.environ.items() if name not in ["DEBFULLNAME", "DEBEMAIL"]}
    # A debug build is large, and the test is in a hurry.
    hurry = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
    places.output(*command, env={**environment, **hurry, **maintainer})
    [file] = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    return build(folder, {"DEBFULLNAME": "Eva Example", "DEBEMAIL": "eva@example.org"})


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
    assert field("Maintainer") == "Eva Example <eva@example.org>"
    assert field("Version") == places.output(places.PROGRAM, "--version").split()[1]


def test_lintian_has_no_errors_and_no_warnings_even_where_nobody_maintains_it(tmp_path):
    package = build(tmp_path, {})
    judged = subprocess.run(
        ["lintian", "--no-cfg", "--allow-root", "--fail-on=error,warning", package], capture_output=True, text=True
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_what_is_installed_can_be_verified(package, dpkg):
    root = dpkg("--install", str(package))
    sums = root / "var/lib/dpkg/info/nbd-proxy.md5sums"
    assert "usr/bin/nbd-proxy" in sums.read_text()
    places.output("md5sum", "--check", "--quiet", sums, cwd=root)


def test_what_is_installed_runs_with_the_configuration_that_comes_with_it(package, dpkg):
    root = dpkg("--install", str(package))
    program = root / "usr/bin/nbd-proxy"
    metadata = places.output(program, "--config", root / "etc/nbd-proxy/config.json", "--metadata")
    assert metadata.strip() == '{"0":null}'
    assert len(list((root / "usr/share/man/man1").iterdir())) == len(places.commands()) + 1
    assert (root / "usr/share/bash-completion/completions/nbd-proxy").exists()


def contents(root):
    """What is below a root, beside dpkg's own notes and directories."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path) for path in paths if not path.is_relative_to("var/lib/dpkg"))


def test_units_are_installed_and_the_main_one_is_enabled_where_no_systemd_runs(package, dpkg):
    root = dpkg("--install", str(package))
    installed = {path.name for path in (root / "usr/lib/systemd/system").iterdir()}
    assert installed == {path.name for path in (places.ROOT / "packaging/systemd").iterdir()}
    enabled = [path for path in contents(root) if path.startswith("etc/systemd")]
    assert enabled == ["etc/systemd/system/multi-user.target.wants/nbd-proxy.service"]


def test_a_unit_that_was_disabled_stays_so(package, dpkg):
    root = dpkg("--install", str(package))
    link = root / "etc/systemd/system/multi-user.target.wants/nbd-proxy.service"
    link.unlink()
    dpkg("--install", str(package))
    assert not link.is_symlink()


def test_an_upgrade_keeps_the_configuration_and_a_purge_leaves_nothing(package, dpkg):
    root = dpkg("--install", str(package))
    config = root / "etc/nbd-proxy/config.json"
    config.write_text('{"configurations": {"mine": {"device": "unix:"}}}')
    made = [root / "var/lib/nbd-proxy/logins.json", root / "etc/nbd-proxy/users.json"]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    dpkg("--install", str(package))
    assert "mine" in config.read_text()
    dpkg("--remove", "nbd-proxy")
    assert config.exists() and all(file.exists() for file in made) and not (root / "usr/bin/nbd-proxy").exists()
    dpkg("--purge", "nbd-proxy")
    assert contents(root) == []


def test_a_purge_leaves_what_others_have_put_there(package, dpkg):
    root = dpkg("--install", str(package))
    hook = root / "etc/nbd-proxy/state"
    hook.touch()
    dpkg("--purge", "nbd-proxy")
    assert contents(root) == ["etc/nbd-proxy/state"]
