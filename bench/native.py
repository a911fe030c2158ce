#!/usr/bin/env python3
"""The path without a browser: `share` to `serve` to `unix:`, beside nbdkit serving the same file.

    bench/native.py PROGRAM [--size MIB] [--rounds N] [--line 'DELAY_MS RATE_MBIT' ...]

Prints one Markdown table per question. Ratios are of medians of rounds that alternate between the two.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")


def wait_for(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not happen within {seconds} s")
        time.sleep(0.01)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid, key="VmRSS"):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024


@contextlib.contextmanager
def running(*command, **options):
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nbdkit(image, place):
    path = place / "nbdkit.sock"
    path.unlink(missing_ok=True)
    with running("nbdkit", "-f", "-U", path, "file", image) as process:
        wait_for(path.exists, "nbdkit's socket")
        yield path, process.pid


@contextlib.contextmanager
def shared(program, image, place, line=None, configuration=None):
    """`serve` and `share` with a Unix socket, over a bad line where one is given."""
    path = place / "device.sock"
    config = place / "config.json"
    one = {"device": f"unix:{path}", **(configuration or {})}
    config.write_text(json.dumps({"configurations": {"0": one}}))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(place), "RUNTIME_DIRECTORY": str(place)}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(place / "serve.log", "w"))
        serve = stack.enter_context(
            running(program, "serve", "--config", config, "--listen", "127.0.0.1:0",
                    stdout=subprocess.PIPE, stderr=log, env=environment)
        )
        address = serve.stdout.readline().decode().strip()
        if line is not None:
            delay, rate = line
            port = re.search(r":(\d+)/", address)[1]
            shaper = stack.enter_context(
                running("node", ROOT / "tests/lib/line.mjs", "0", port, "--delay", delay,
                        "--rate", rate, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            entrance = shaper.stdout.readline().decode().strip()
            address = address.replace(f"127.0.0.1:{port}", entrance)
        share = stack.enter_context(
            running(program, "share", image, address, stdout=subprocess.DEVNULL, stderr=log)
        )
        wait_for(path.exists, "the device")
        yield path, serve.pid, share.pid


def timed(command):
    start = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def copy(path, size):
    return size / timed(["nbdcopy", f"nbd+unix:///?socket={path}", "null:"])


def random_reads(path, depth, seconds=4):
    result = subprocess.run(
        ["fio", "--name=r", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}", "--rw=randread",
         "--bs=4k", f"--iodepth={depth}", f"--runtime={seconds}", "--time_based",
         "--output-format=json", "--randrepeat=0"],
        check=True, capture_output=True, text=True)
    text = result.stdout[result.stdout.index("{"):]
    return json.loads(text)["jobs"][0]["read"]["iops"]


def depth_one(path, length, total):
    """Bytes a second of a reader that asks for the next `length` bytes once it has the last."""
    script = (
        "import nbd, time\n"
        f"h = nbd.NBD(); h.connect_uri('nbd+unix:///?socket={path}')\n"
        f"at, end = 0, min({total}, h.get_size())\n"
        "start = time.monotonic()\n"
        "while at < end:\n"
        f"    n = min({length}, end - at); h.pread(n, at); at += n\n"
        "print(at / (time.monotonic() - start))\n"
    )
    answer = subprocess.run(["/usr/bin/python3", "-c", script], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def table(title, rows, head):
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def side_by_side(rounds, measure, program, image, place):
    """Medians of (ours, nbdkit's), measured in turns."""
    ours, theirs = [], []
    with nbdkit(image, place) as (their_path, _), shared(program, image, place) as (path, *_):
        for _ in range(rounds):
            theirs.append(measure(their_path))
            ours.append(measure(path))
    return statistics.median(ours), statistics.median(theirs)


def native(program, image, size, rounds, place):
    rows = []
    for title, measure, unit in [
        ("nbdcopy", lambda path: copy(path, size) / 1e6, "MB/s"),
        ("random 4 KiB, depth 1", lambda path: random_reads(path, 1), "IOPS"),
        ("random 4 KiB, depth 16", lambda path: random_reads(path, 16), "IOPS"),
        ("sequential 128 KiB, depth 1", lambda path: depth_one(path, 128 << 10, size) / 1e6, "MB/s"),
    ]:
        ours, theirs = side_by_side(rounds, measure, program, image, place)
        rows.append((title, f"{ours:,.0f} {unit}", f"{theirs:,.0f} {unit}", f"{ours / theirs:.2f}"))
    table("share to serve to unix:, beside nbdkit file", rows, ["what", "ours", "nbdkit", "ratio"])


def cost(program, image, size, place):
    with shared(program, image, place) as (path, serve, share):
        idle = resident(serve)
        before = cpu_seconds(serve), cpu_seconds(share)
        copy(path, size)
        after = cpu_seconds(serve), cpu_seconds(share)
        gib = size / (1 << 30)
        theirs = websocketd(size, place)
        rows = [
            ("websocketd and socat", f"{theirs / gib:.2f} s/GiB", "", ""),
            ("serve", f"{(after[0] - before[0]) / gib:.2f} s/GiB", f"{idle:.1f} MB", f"{resident(serve, 'VmHWM'):.1f} MB"),
            ("share", f"{(after[1] - before[1]) / gib:.2f} s/GiB", "", f"{resident(share, 'VmHWM'):.1f} MB"),
        ]
    table("processor time and memory while nbdcopy reads", rows, ["what", "CPU", "resident idle", "at most"])


PUMP = """
const [address, length] = [process.argv[1], Number(process.argv[2])];
const piece = new Uint8Array(128 << 10);
const socket = new WebSocket(address);
await new Promise((resolve) => { socket.onopen = resolve; });
for (let sent = 0; sent < length; sent += piece.length) {
  while (socket.bufferedAmount > 4 << 20) await new Promise((resolve) => setTimeout(resolve, 1));
  socket.send(piece);
}
while (socket.bufferedAmount > 0) await new Promise((resolve) => setTimeout(resolve, 1));
"""


def drain(listener, length, done):
    connection, _ = listener.accept()
    got, room = 0, bytearray(1 << 20)
    while got < length:
        count = connection.recv_into(room)
        if count == 0:
            break
        got += count
    done.append(got)


def websocketd(size, place):
    """CPU seconds of websocketd and socat that move `size` bytes from a WebSocket to a Unix socket."""
    path = place / "sink.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    done = []
    drainer = threading.Thread(target=drain, args=(listener, size, done))
    drainer.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running("websocketd", f"--port={port}", "--address=127.0.0.1", "--binary=true",
                 "socat", "-b", "131072", "STDIO", f"UNIX-CONNECT:{path}",
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), "websocketd's port")
        pump = subprocess.Popen(["node", "--experimental-websocket", "--input-type=module", "-e", PUMP,
                                 f"ws://127.0.0.1:{port}/", str(size)])
        drainer.join()
        family = [process.pid, *map(int, subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split())]
        spent = sum(cpu_seconds(pid) for pid in family)
        pump.kill()
        pump.wait()
    if done != [size]:
        sys.exit(f"websocketd and socat moved {done} of {size} bytes")
    return spent


def watched(process, path, size):
    """CPU seconds and the most memory (MB) of a process while nbdcopy reads what it serves; it may end by itself."""
    before = cpu_seconds(process.pid)
    reader = subprocess.Popen(["nbdcopy", "--connections=1", "--request-size=131072",
                               f"nbd+unix:///?socket={path}", "null:"])
    spent = most = 0
    while reader.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            spent, most = cpu_seconds(process.pid) - before, resident(process.pid, "VmHWM")
        time.sleep(0.005)
    return spent, most


def filter_cost(program, image, size, place):
    """The stdin/stdout form between nbdkit and nbdcopy, beside socat in its place."""
    rows = []
    path, config = place / "filter.sock", place / "filter.json"
    one = {"device": f"unix:{path}", "state-hook": str(place / "none")}
    config.write_text(json.dumps({"configurations": {"0": one}}))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(place), "RUNTIME_DIRECTORY": str(place)}
    ours = [program, "--config", config, "0"]
    theirs = ["socat", "-b", "131072", "STDIO", f"UNIX-LISTEN:{path}"]
    with nbdkit(image, place) as (source, _):
        for name, command in [("nbd-proxy", ours), ("socat", theirs)]:
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(source))
                with running(*command, stdin=link, stdout=link, stderr=subprocess.DEVNULL,
                             env=environment) as process:
                    wait_for(path.exists, f"{name}'s socket")
                    spent, most = watched(process, path, size)
            rows.append((name, f"{spent / (size / (1 << 30)):.2f} s/GiB", f"{most:.1f} MB"))
    table("the filter on standard input and output, beside socat in its place", rows,
          ["what", "CPU", "resident at most"])


def lines(program, image, shapes, place):
    rows = []
    for delay, rate in shapes:
        megabytes = min(max(rate * 8 / 8, 24), 512)
        with shared(program, image, place, (delay / 2, rate * 1_000_000)) as (path, serve, _):
            got = depth_one(path, 128 << 10, int(megabytes * (1 << 20))) * 8 / 1e6
            peak = resident(serve, "VmHWM")
        rows.append((f"{delay:g} ms, {rate:g} Mbit/s", f"{got:.1f} Mbit/s", f"{got / rate:.2f}", f"{peak:.1f} MB"))
    table("a cold sequential reader of 128 KiB, depth 1", rows, ["round trip, line", "got", "of the line", "serve resident at most"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=1024, help="of the image, in MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["native", "cost", "filter", "lines"], action="append")
    parser.add_argument("--line", action="append", metavar="'MS MBIT'", help="a round trip and a rate")
    options = parser.parse_args()
    shapes = [tuple(float(part) for part in text.split()) for text in options.line or ["50 100", "50 1000", "200 20"]]
    wanted = options.only or ["native", "cost", "filter", "lines"]
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
    try:
        image = place / "image"
        size = options.size << 20
        with open("/dev/urandom", "rb") as source, open(image, "wb") as target:
            for _ in range(options.size):
                target.write(source.read(1 << 20))
        print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")
        program = options.program.resolve()
        if "native" in wanted:
            native(program, image, size, options.rounds, place)
        if "cost" in wanted:
            cost(program, image, size, place)
        if "filter" in wanted:
            filter_cost(program, image, size, place)
        if "lines" in wanted:
            lines(program, image, shapes, place)
        print(f"\nload {os.getloadavg()[0]:.2f}")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
