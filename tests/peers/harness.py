"""Starting programs, feeding them, and waiting for what they do."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: The program under test; `cargo xtask test` says where it built it.
PROGRAM = os.environ.get("NBD_PROXY", str(ROOT / "target/debug/nbd-proxy"))

#: How long a condition may take on a loaded machine before a test gives up.
PATIENCE = 60.0

#: The contract's bound on how long the stdin/stdout form may take to end, and what a loaded machine may add to it.
END_SECONDS, SLACK_SECONDS = 0.5, 1.5


def wait_until(what, condition, seconds=PATIENCE):
    """Polls until `condition()` gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def listens(path):
    """Whether a server accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            return True
        except OSError:
            return False


class Program:
    """A program in the background, its messages kept in a file."""

    def __init__(self, command, folder, **options):
        self.messages = pathlib.Path(tempfile.mkstemp(prefix="messages-", dir=folder)[1])
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        with self.messages.open("wb") as stderr:
            self.process = subprocess.Popen([str(word) for word in command], stderr=stderr, **options)

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def stderr(self):
        return self.messages.read_text(errors="replace")

    def send(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=PATIENCE):
        """Waits for the end and returns the exit status."""
        return self.process.wait(seconds)

    def cpu_seconds(self):
        """Processor time it has used so far."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Scope:
    """What a test starts and makes, all of which ends with it."""

    def __init__(self, stack, folder):
        self.stack = stack
        self.folder = folder

    @classmethod
    @contextlib.contextmanager
    def new(cls):
        # pytest's own folders have names too long for a Unix socket.
        folder = pathlib.Path(tempfile.mkdtemp(prefix="nbd-proxy-"))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield cls(stack, folder)

    def start(self, *command, **options):
        program = Program(command, self.folder, **options)
        self.stack.callback(end, program)
        return program

    def subfolder(self, prefix):
        return pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))

    def connect(self, path):
        """A connection to a Unix socket."""
        wait_until(f"{path} listens", lambda: listens(path))
        connection = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(path))
        return connection

    def nbdkit(self, *arguments):
        """Starts nbdkit on a new Unix socket, and returns its path."""
        path = self.subfolder("nbdkit-") / "socket"
        program = self.start("nbdkit", "-f", "-U", path, *arguments)
        wait_until("nbdkit listens", lambda: listens(path) or not program.running)
        assert program.running, program.stderr
        return path

    def configure(self, configurations=None, **settings):
        """A configuration file and the environment that makes nbd-proxy use it."""
        if configurations is None:
            configurations = {"0": {"nbd-device": "unix:"}}
        return Setting(self.subfolder("setting-"), {"configurations": configurations, **settings})


def end(program):
    """Ends a program, by force where it does not listen."""
    if program.running:
        program.send(signal.SIGTERM)
        try:
            program.wait(10)
        except subprocess.TimeoutExpired:
            program.send(signal.SIGKILL)
            program.wait()


class Setting:
    """A configuration file, a runtime folder, and a state hook that records its calls."""

    def __init__(self, folder, config):
        self.folder = folder
        self.runtime = folder / "run"
        self.runtime.mkdir()
        self.calls_file = folder / "calls"
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(config))
        self.env = {
            **os.environ,
            "NBD_PROXY_CONFIG": str(self.config),
            "RUNTIME_DIRECTORY": str(self.runtime),
            "STATE_DIRECTORY": str(self.runtime / "state"),
        }

    def socket(self, name="0"):
        return self.runtime / f"{name}.sock"

    def hook(self, script="", **settings):
        """Makes every configuration use a hook that records each call, then runs `script` (sh)."""
        path = self.folder / "state"
        path.write_text(
            "#!/bin/sh\n"
            f'{{ echo "$@"; env | grep ^NBD_PROXY_ | sort; echo; }} >>{self.calls_file}\n'
            f"{script}\n"
        )
        path.chmod(0o755)
        config = json.loads(self.config.read_text())
        for configuration in config["configurations"].values():
            configuration.update({"state-hook": str(path), **settings})
        self.config.write_text(json.dumps(config))

    def attached(self, program, name="0"):
        """Waits for the socket device that a program attaches, and returns its path."""
        path = self.socket(name)
        wait_until("the device is there", lambda: listens(path) or not program.running)
        assert program.running, program.stderr
        return path

    def calls(self):
        """The recorded calls so far: [(["start", "0"], {"NBD_PROXY_DEVICE": …}), …]."""
        if not self.calls_file.exists():
            return []
        calls = []
        # An empty line ends each record; what follows the last one is still being written.
        for record in self.calls_file.read_text().split("\n\n")[:-1]:
            arguments, *variables = record.splitlines()
            calls.append((arguments.split(), dict(line.split("=", 1) for line in variables)))
        return calls


class Filter:
    """`nbd-proxy [CONFIGURATION]` on two pipes, with an NBD server's connection at their other ends."""

    def __init__(self, scope, setting, connection, *arguments):
        self.setting = setting
        self.connection = connection
        command = (PROGRAM, *(arguments or ("0",)))
        self.program = scope.start(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=setting.env
        )
        self.process = self.program.process
        for pump in (self._to_program, self._from_program):
            threading.Thread(target=pump, daemon=True).start()

    def _to_program(self):
        with contextlib.suppress(OSError, ValueError):
            while data := self.connection.recv(1 << 16):
                self.process.stdin.write(data)
                self.process.stdin.flush()
        self.end_of_input()

    def _from_program(self):
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                self.connection.sendall(data)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def end_of_input(self):
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()

    def attached(self, name="0"):
        return self.setting.attached(self.program, name)


def filter_fed_by(scope, server, *arguments, setting=None):
    """Starts the stdin/stdout form with the server behind a Unix socket as its peer."""
    setting = setting or scope.configure()
    return Filter(scope, setting, scope.connect(server), *arguments)


class Server:
    """`nbd-proxy serve`."""

    def __init__(self, scope, setting):
        self.scope = scope
        self.setting = setting
        self.program = scope.start(
            PROGRAM, "serve", "--listen", "127.0.0.1:0", env=setting.env, stdout=subprocess.PIPE
        )
        self.address = self.program.process.stdout.readline().decode().strip()
        assert self.address.startswith("http://"), self.program.stderr

    def share(self, image):
        """Serves an image to the default configuration."""
        return self.scope.start(PROGRAM, "share", image, self.address, env=self.setting.env)

    def attached(self, name="0"):
        return self.setting.attached(self.program, name)


def make_image(path, size, seed=1):
    """An image of noise with a hole in each second 256 KiB, reproducible. Returns its bytes."""
    noise = random.Random(seed)
    step = 256 << 10
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 2 * step):
            data = noise.randbytes(min(step, size - offset))
            content[offset : offset + len(data)] = data
            file.seek(offset)
            file.write(data)
    return bytes(content)


def run(*command, check=True, **options):
    """Runs a program to its end and returns what it printed on standard output."""
    options = {"capture_output": True, "text": True, "timeout": 5 * PATIENCE, **options}
    done = subprocess.run([str(word) for word in command], **options)
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}{done.stdout}"
    return done.stdout if check else done
