"""What the questions share: programs started and ended, servers side by side, and what is read from /proc."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 1 << 30
MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")

# Debian's own interpreter: it is the one that has python3-libnbd.
PYTHON = "/usr/bin/python3"


class Failed(Exception):
    """A measurement that could not be made; never one whose figure is bad."""


def wait_for(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen within {seconds} s")
        time.sleep(0.01)
    return value


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def family(pid):
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
        found += map(int, children.split())
    return found


def resident(pid, key="VmRSS"):
    """Megabytes (10^6) of a process's memory, now or at most (VmHWM)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", status)[1]) * 1024 / 1e6


@contextlib.contextmanager
def running(*command, **options):
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def output(*command, timeout=300, **options):
    """What a program prints; one that hangs is ended after so many seconds."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


def timed(*command):
    """Seconds that a program takes."""
    start = time.monotonic()
    output(*command)
    return time.monotonic() - start


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port):
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def uri(path):
    return f"nbd+unix:///?socket={path}"


@dataclasses.dataclass
class Bench:
    """What a run was asked for, and where it works."""

    program: pathlib.Path
    sink: pathlib.Path
    reader: pathlib.Path
    counting: pathlib.Path
    small: pathlib.Path
    quick: bool
    place: pathlib.Path

    @property
    def rounds(self):
        return 1 if self.quick else 5

    @property
    def size(self):
        """Bytes of the image."""
        return 256 * MIB if self.quick else GIB

    @property
    def image(self):
        """A file of noise, which no layer can make less of."""
        path = self.place / "image"
        if not path.exists():
            noise(path, self.size)
        return path

    def folder(self):
        """A new folder for one measurement's sockets."""
        return pathlib.Path(tempfile.mkdtemp(dir=self.place))


def noise(path, size):
    with open("/dev/urandom", "rb") as source, open(path, "wb") as target:
        for start in range(0, size, MIB):
            target.write(source.read(min(MIB, size - start)))


@contextlib.contextmanager
def nbdkit(image, folder):
    path = folder / "nbdkit.sock"
    with running("nbdkit", "-f", "-r", "-U", path, "file", image) as process:
        wait_for(path.exists, "nbdkit's socket")
        yield path, process.pid


@contextlib.contextmanager
def qemu_nbd(image, folder):
    path = folder / "qemu-nbd.sock"
    with running("qemu-nbd", "-r", "-t", "-e", "16", "-f", "raw", "-k", path, image) as process:
        wait_for(path.exists, "qemu-nbd's socket")
        yield path, process.pid


@contextlib.contextmanager
def nbdfuse(bench):
    """nbdkit's file as nbdfuse mounts it."""
    folder = bench.folder()
    path = folder / "disk"
    path.touch()
    with nbdkit(bench.image, folder) as (socket_path, _), running(
        "nbdfuse", "-r", path, uri(socket_path), stderr=subprocess.DEVNULL,
    ):
        wait_for(lambda: path.stat().st_size > 0, "nbdfuse's file")
        yield path


@contextlib.contextmanager
def fuse_device(bench):
    """The image as a session shows it as a file."""
    folder = bench.folder()
    path = folder / "shown"
    with serve(bench, {"0": {"device": f"fuse:{path}"}}) as server, share(bench, server, bench.image):
        server.attached()
        yield path


@dataclasses.dataclass
class Serve:
    """A running `nbd-proxy serve`."""

    process: subprocess.Popen
    address: str
    folder: pathlib.Path

    @property
    def port(self):
        return int(re.search(r":(\d+)/", self.address)[1])

    @property
    def token(self):
        return self.address.split("#token=")[1]

    @property
    def fingerprint(self):
        """Of its certificate, as it shows it when it speaks TLS."""
        return wait_for(lambda: re.search(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", (self.folder / "log").read_text()),
                        "the fingerprint")[0]

    def attached(self, name="0"):
        """What the API calls the device of a session, once it is attached."""
        def device():
            where = f"http://127.0.0.1:{self.port}/api/v1/configurations/{name}"
            question = urllib.request.Request(where, headers={"Authorization": f"Bearer {self.token}"})
            with urllib.request.urlopen(question) as answer:
                session = json.load(answer)["session"]
            return session and session["state"] == "attached" and session["device"]
        return wait_for(device, f"the device of {name}")

    def device(self, name="0"):
        """The device's path, once it is there."""
        path = self.folder / f"{name}.sock"
        wait_for(path.exists, f"the device of {name}")
        return path


@contextlib.contextmanager
def serve(bench, configurations=None, settings=None, cache=None, tls=False, program=None):
    """`serve`, by default with the one configuration `0`, a Unix socket and the usual cache (else: its bytes)."""
    folder = bench.folder()
    one = {"device": f"unix:{folder}/0.sock", **({} if cache is None else {"cache": cache})}
    named = configurations or {"0": one}
    config = folder / "config.json"
    config.write_text(json.dumps({"configurations": named, "serve": settings or {}}))
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder), "STATE_DIRECTORY": str(folder / "state")}
    with open(folder / "log", "w") as log, running(
        program or bench.program, "serve", "--config", config, "--listen", "127.0.0.1:0",
        *(["--tls-self-signed"] if tls else []), stdout=subprocess.PIPE, stderr=log, env=environment,
    ) as process:
        address = process.stdout.readline().decode().strip()
        if not address:
            raise Failed(f"serve did not start: {(folder / 'log').read_text()}")
        yield Serve(process, address, folder)


@contextlib.contextmanager
def line_to(port, shape):
    """The port of a line to `port`, shaped by (round trip in ms, Mbit/s)."""
    round_trip, rate = shape
    with running("node", ROOT / "tests/lib/line.mjs", "0", port, "--delay", round_trip / 2,
                 "--rate", int(rate * 1e6), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as line:
        yield int(line.stdout.readline().decode().strip().split(":")[1])


@contextlib.contextmanager
def share(bench, server, image, name="0", port=None):
    """`share` of an image to a server, over a line's port where one is given."""
    tls = server.address.startswith("https:")
    address = f"{'wss' if tls else 'ws'}://127.0.0.1:{port or server.port}/nbd/{name}"
    trust = ["--fingerprint", server.fingerprint] if tls else []
    with open(server.folder / "share.log", "a") as log, running(
        bench.program, "share", image, address, "--token", server.token, *trust,
        stdout=subprocess.DEVNULL, stderr=log,
    ) as process:
        yield process


@contextlib.contextmanager
def shared(bench, image, shape=None, tls=False):
    """`serve` with a Unix socket and `share`: (the device, serve's process ID, share's)."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, tls=tls))
        port = stack.enter_context(line_to(server.port, shape)) if shape else None
        sharer = stack.enter_context(share(bench, server, image, port=port))
        yield server.device(), server.process.pid, sharer.pid


def copy_rate(path, size):
    """Bytes a second of nbdcopy."""
    return size / timed("nbdcopy", uri(path), "null:")


def read_rate(path, size):
    """Bytes a second of dd, of a file that is read anew: nothing of it is in the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size / timed("dd", f"if={path}", "of=/dev/null", "bs=1M")


def random_reads(path, depth, seconds):
    """Reads a second of fio, of 4 KiB anywhere in the device."""
    text = output("fio", "--name=r", "--ioengine=nbd", f"--uri={uri(path)}", "--rw=randread", "--bs=4k",
                  f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", "--output-format=json",
                  "--randrepeat=0")
    return json.loads(text[text.index("{"):])["jobs"][0]["read"]["iops"]


DEPTH_ONE = """
import sys, time, nbd
uri, length, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
handle = nbd.NBD()
handle.connect_uri(uri)
at, end = 0, min(total, handle.get_size())
start = time.monotonic()
while at < end:
    handle.pread(min(length, end - at), at)
    at += length
print(end / (time.monotonic() - start))
"""


def depth_one(path, length, total):
    """Bytes a second of a reader that asks for the next `length` bytes once it has the last."""
    return float(output(PYTHON, "-c", DEPTH_ONE, uri(path), length, total))


def in_turn(rounds, *measures):
    """The median of each measure; they take turns, so that a busy moment strikes all of them."""
    figures = [[] for _ in measures]
    for _ in range(rounds):
        for measure, list_ in zip(measures, figures):
            list_.append(measure())
    return [statistics.median(list_) for list_ in figures]


def warn(text):
    print(text, file=sys.stderr, flush=True)
