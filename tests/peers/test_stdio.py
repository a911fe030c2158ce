"""The stdin/stdout form: its arguments, its exit statuses, and how it ends."""

import json
import os
import signal
import subprocess
import time

import harness
import nbd
import pytest


@pytest.fixture
def fed(scope, image):
    """The program, attached."""
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path))
    fed.attached()
    return fed


def run(setting, *arguments):
    return harness.run(harness.PROGRAM, *arguments, check=False, env=setting.env, stdin=subprocess.DEVNULL)


def ends_in_time(program):
    """Waits for the end; returns the exit status once it came within the bound."""
    start = time.monotonic()
    status = program.wait()
    took = time.monotonic() - start
    assert took < harness.END_SECONDS + harness.SLACK_SECONDS, f"{took:.2f} s"
    return status


def test_end_of_input_ends_in_order(fed):
    fed.end_of_input()
    assert ends_in_time(fed.program) == 0
    assert not fed.setting.socket().exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_in_order(fed, number):
    fed.program.send(number)
    assert ends_in_time(fed.program) == 0
    assert not fed.setting.socket().exists()


def test_the_end_does_not_wait_for_a_reader_of_standard_output(scope, image):
    """bmcweb stops reading, then waits for us with its whole web server."""
    setting = scope.configure()
    connection = scope.connect(scope.nbdkit("-r", "--filter=delay", "file", image.path, "delay-read=30"))
    fed = harness.Filter(scope, setting, connection)
    handle = nbd.NBD()
    handle.connect_unix(str(fed.attached()))
    os.kill(fed.program.pid, signal.SIGSTOP)
    fed.process.stdout.close()
    os.kill(fed.program.pid, signal.SIGCONT)
    buffers = [nbd.Buffer(4096) for _ in range(64)]
    for buffer in buffers:
        handle.aio_pread(buffer, 0)
    fed.program.send(signal.SIGTERM)
    ends_in_time(fed.program)


def test_the_end_before_the_handshake(scope):
    setting = scope.configure()
    for end in ("input", "signal"):
        program = scope.start(harness.PROGRAM, "0", env=setting.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if end == "signal":
            # The handler is set before anything is looked at.
            harness.wait_until("it waits", lambda: catches(program.pid, signal.SIGTERM))
            program.send(signal.SIGTERM)
        else:
            program.process.stdin.close()
        assert ends_in_time(program) in (0, 1)


def catches(pid, number):
    status = dict(
        line.split(":", 1) for line in open(f"/proc/{pid}/status", encoding="ascii", errors="replace") if ":" in line
    )
    return int(status["SigCgt"], 16) & 1 << (number - 1)


def test_help_and_version_go_to_standard_output(scope):
    setting = scope.configure()
    for option in ("-h", "--help", "--version"):
        done = run(setting, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert "nbd-proxy" in done.stdout


@pytest.mark.parametrize("arguments", [["--nonsense"], ["0", "1"], ["share"], ["eject"]], ids=" ".join)
def test_wrong_usage_is_exit_status_2(scope, arguments):
    done = run(scope.configure(), *arguments)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr


def test_an_unknown_configuration_is_named(scope):
    done = run(scope.configure(), "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("content", ["{", '{"configurations": {}}', '{"configurations": {"0": {"nbd-device": 7}}}'])
def test_a_broken_configuration_is_exit_status_1(scope, content):
    setting = scope.configure()
    setting.config.write_text(content)
    done = run(setting)
    assert done.returncode == 1
    assert done.stderr.startswith("nbd-proxy: ")


def test_a_missing_configuration_file_is_named(scope):
    setting = scope.configure()
    setting.config.unlink()
    done = run(setting, "0")
    assert done.returncode == 1
    assert str(setting.config) in done.stderr


def test_metadata_is_one_line_of_json(scope):
    setting = scope.configure(
        {
            "0": {"nbd-device": "/dev/nbd0", "metadata": {"description": "one", "deep": {"list": [1, None]}}},
            "1": {"nbd-device": "/dev/nbd1"},
        }
    )
    done = run(setting, "--metadata")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert json.loads(done.stdout) == {"0": {"description": "one", "deep": {"list": [1, None]}}, "1": None}


def test_comments_and_unknown_keys_pass_as_they_did(scope):
    setting = scope.configure()
    setting.config.write_text(
        '{ /* a comment */ "timeout": 30, // another\n "colour": "green",'
        ' "configurations": { "0": { "nbd-device": "unix:", "metadata": {"a": 1} } } }'
    )
    done = run(setting, "--metadata")
    assert json.loads(done.stdout) == {"0": {"a": 1}}


def test_the_option_names_the_configuration_file(scope):
    setting = scope.configure({"named": {"nbd-device": "unix:"}})
    other = scope.configure()
    done = run(other, "--config", str(setting.config), "--metadata")
    assert json.loads(done.stdout) == {"named": None}


@pytest.mark.parametrize(
    "configurations",
    [{"only": {"nbd-device": "unix:"}}, {"a": {"nbd-device": "unix:"}, "only": {"nbd-device": "unix:", "default": True}}],
    ids=["the sole one", "the one marked so"],
)
def test_the_default_configuration(scope, image, configurations):
    connection = scope.connect(scope.nbdkit("-r", "file", image.path))
    setting = scope.configure(configurations)
    fed = harness.Filter(scope, setting, connection, "--config", setting.config)
    fed.attached("only")


def test_two_defaults_are_an_error(scope):
    one = {"nbd-device": "unix:", "default": True}
    done = run(scope.configure({"a": one, "b": one}))
    assert done.returncode == 1
    assert "default" in done.stderr


def test_several_without_a_default_must_be_named(scope):
    done = run(scope.configure({"a": {"nbd-device": "unix:"}, "b": {"nbd-device": "unix:"}}))
    assert done.returncode == 1
    assert "default" in done.stderr


def test_a_second_process_for_the_same_configuration_is_refused_and_harms_nobody(scope, image, fed):
    device = fed.attached()
    second = harness.filter_fed_by(scope, scope.nbdkit("-r", "null", "size=1M"), setting=fed.setting)
    assert second.program.wait() == 1
    assert "use" in second.program.stderr
    handle = nbd.NBD()
    handle.connect_unix(str(device))
    assert handle.pread(4096, 0) == image.content[:4096]


def test_two_configurations_at_once(scope, image):
    setting = scope.configure({"0": {"nbd-device": "unix:"}, "1": {"nbd-device": "unix:"}})
    pattern = bytes(range(256)) * 4096
    other = scope.folder / "other"
    other.write_bytes(pattern)
    first = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path), "0", setting=setting)
    second = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", other), "1", setting=setting)
    for fed, name, content in ((first, "0", image.content), (second, "1", pattern)):
        handle = nbd.NBD()
        handle.connect_unix(str(fed.attached(name)))
        assert handle.pread(len(content), 0) == content
    first.end_of_input()
    assert first.program.wait() == 0
    assert second.program.running


def test_messages_are_lines_that_name_the_program(fed):
    fed.program.send(signal.SIGTERM)
    fed.program.wait()
    assert all(line.startswith("nbd-proxy: ") for line in fed.program.stderr.splitlines())


def test_a_peer_that_speaks_nonsense_is_refused_with_a_reason(scope):
    setting = scope.configure()
    program = scope.start(harness.PROGRAM, "0", env=setting.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    program.process.stdin.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    program.process.stdin.flush()
    assert program.wait() == 1
    assert program.stderr.startswith("nbd-proxy: ")
    assert program.process.stdout.read() == b""
