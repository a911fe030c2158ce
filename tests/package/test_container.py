"""The container file, built and run by buildah without an engine. The two images that it builds on are stood in for:
by programs of this machine, and for the compiler's part by one that has compiled the program already."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

import places

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers are run by root here")

CONTAINERFILE = places.ROOT / "packaging/container/Containerfile"

#: What the container file's own commands are.
PROGRAMS = ["sh", "cargo", "strip", "groupadd", "useradd", "install"]

#: The compiler's part of the container file, with the program that is compiled already in the root.
CARGO = "#!/bin/sh\nset -e\ninstall -D /program target/release/nbd-proxy\n"

#: Less than newer versions ask for, which takes CAP_SYS_RESOURCE.
LIMITS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]

PATIENCE = 60


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    store = tmp_path_factory.mktemp("containers")
    options = [f"--root={store}/images", f"--runroot={store}/run", "--storage-driver=vfs"]

    def run(*words):
        done = subprocess.run(["buildah", *options, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    run.command = ["buildah", *options]
    yield run
    run("rm", "--all")


def put(root, program):
    """Copies a program with its libraries."""
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for file in [program, *re.findall(r"/\S+", libraries)]:
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


@pytest.fixture(scope="module")
def base(buildah, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for folder in ["etc", "run", "tmp", "usr/bin", "var/lib"]:
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for program in PROGRAMS:
        if program != "cargo":
            put(root, shutil.which(program, path="/bin:/usr/bin:/usr/sbin"))
    # What the program is linked with.
    put(root, places.PROGRAM)
    (root / places.PROGRAM.lstrip("/")).rename(root / "program")
    (root / "usr/bin/cargo").write_text(CARGO)
    (root / "usr/bin/cargo").chmod(0o755)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    return buildah("commit", "--quiet", container, "base")


@pytest.fixture(scope="module")
def image(buildah, base):
    build = ["build", "--isolation=chroot", *LIMITS, "--build-arg=RUST=base", "--build-arg=DEBIAN=base", "--tag=nbd-proxy"]
    buildah(*build, "--quiet", "--pull-never", f"--file={CONTAINERFILE}", places.ROOT)
    return "nbd-proxy"


def test_the_image_runs_as_nobody_else_and_says_where_its_things_are(buildah, image):
    config = json.loads(buildah("inspect", "--type=image", image))["OCIv1"]["config"]
    assert config["User"] == "nbd-proxy"
    assert set(config["Volumes"]) == {"/run/nbd-proxy", "/var/lib/nbd-proxy"}


def test_a_container_serves_an_image_as_a_socket_in_its_volume(buildah, image, tmp_path):
    container = buildah("from", *LIMITS, "--pull-never", image)
    config = json.loads(buildah("inspect", container))["OCIv1"]["config"]
    # Another port, as the network is the machine's.
    words = [word.replace(":8000", ":0") for word in config["Entrypoint"] + config["Cmd"]]
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    os.chown(volume, 64443, 64443)
    run = [*buildah.command, "run", "--isolation=chroot", f"--volume={volume}:/run/nbd-proxy", container, "--", *words]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(run, stdout=output, stderr=output) as server:
        try:
            address = said(log, server, r"https://\S+#token=\S+").group()
            fingerprint = said(log, server, r"[0-9A-F]{2}(:[0-9A-F]{2}){31}").group()
            disk = tmp_path / "disk.img"
            disk.write_bytes(os.urandom(1 << 20))
            share = [places.PROGRAM, "share", str(disk), address, f"--fingerprint={fingerprint}"]
            with subprocess.Popen(share, stderr=subprocess.DEVNULL) as sharing:
                wait_for(lambda: (volume / "0.sock").exists())
                assert (volume / "0.sock").stat().st_uid == 64443
                copied = places.output("nbdcopy", f"nbd+unix:///?socket={volume}/0.sock", "-", text=False)
                assert copied == disk.read_bytes()
                sharing.send_signal(signal.SIGTERM)
                assert sharing.wait(PATIENCE) == 0
        finally:
            server.terminate()


def said(log, process, pattern):
    """What it says that matches."""

    def found():
        assert process.poll() is None, log.read_text()
        return re.search(pattern, log.read_text())

    return wait_for(found)


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
