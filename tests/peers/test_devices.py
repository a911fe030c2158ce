"""Each kind of device, as whoever uses it on the machine sees it."""

import os
import pathlib
import signal
import socket

import harness
import nbd
import pytest


def attach(scope, image, device):
    """The stdin/stdout form with that device; its hook's first call tells where the device is."""
    setting = scope.configure({"0": {"device": device}})
    setting.hook()
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path), setting=setting)
    harness.wait_until("the start hook was called", lambda: setting.calls() or not fed.program.running)
    assert setting.calls(), fed.program.stderr
    return fed, setting.calls()[0][1]["NBD_PROXY_DEVICE"]


def detach(fed):
    fed.program.send(signal.SIGTERM)
    assert fed.program.wait() == 0, fed.program.stderr


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def check_file(path, content):
    assert os.stat(path).st_size in (0, len(content)), "a block device has no length of its own"
    assert pathlib.Path(path).read_bytes() == content
    with pytest.raises(OSError), open(path, "r+b", buffering=0) as file:
        file.write(bytes(512))


def test_a_unix_socket_at_a_path(scope, image):
    path = scope.folder / "there.sock"
    fed, device = attach(scope, image, f"unix:{path}")
    assert device == str(path)
    handle = nbd.NBD()
    handle.connect_unix(device)
    assert handle.pread(len(image.content), 0) == image.content
    detach(fed)
    assert not path.exists()


def test_a_tcp_port_of_loopback(scope, image):
    port = free_port()
    fed, device = attach(scope, image, f"tcp:127.0.0.1:{port}")
    assert str(port) in device
    handle = nbd.NBD()
    handle.connect_tcp("127.0.0.1", str(port))
    assert handle.pread(len(image.content), 0) == image.content
    detach(fed)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_tcp_port_beyond_loopback_is_refused_with_the_reason(scope):
    setting = scope.configure({"0": {"device": "tcp:0.0.0.0:10809"}})
    done = harness.run(harness.PROGRAM, "0", check=False, env=setting.env, input="")
    assert done.returncode == 1
    assert "loopback" in done.stderr


@pytest.mark.parametrize("named", [False, True], ids=["at its default path", "at a path"])
def test_a_file(scope, image, named):
    path = scope.folder / "disk.img"
    fed, device = attach(scope, image, f"fuse:{path}" if named else "fuse:")
    assert device == str(path if named else fed.setting.runtime / "0.img")
    check_file(device, image.content)
    detach(fed)
    assert not pathlib.Path(device).is_mount()


def test_a_loop_device(scope, image):
    fed, device = attach(scope, image, "loop:")
    assert device.startswith("/dev/loop")
    check_file(device, image.content)
    assert pathlib.Path("/sys/block", device[5:], "size").read_text().strip() == str(len(image.content) // 512)
    detach(fed)
    assert device not in harness.run("losetup", "--list", "--noheadings", "--output", "NAME").split()


@pytest.mark.parametrize("device", ["fuse:", "loop:"])
def test_after_sigkill_the_next_start_clears_what_is_left(scope, image, device):
    fed, killed = attach(scope, image, device)
    fed.program.send(signal.SIGKILL)
    fed.program.wait()
    setting = fed.setting
    again = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path), setting=setting)
    harness.wait_until("start runs again", lambda: len(setting.calls()) == 3 or not again.program.running)
    assert [arguments[0] for arguments, _ in setting.calls()] == ["start", "stop", "start"], again.program.stderr
    check_file(setting.calls()[2][1]["NBD_PROXY_DEVICE"], image.content)
    detach(again)


def test_the_automatic_device_is_one_that_works(scope, image):
    fed, device = attach(scope, image, "auto")
    assert device
    detach(fed)


def test_check_tells_what_works_and_the_remedy_for_what_does_not(scope):
    done = harness.run(harness.PROGRAM, "check", check=False, env=scope.configure().env)
    assert done.returncode == 0, done.stderr
    for kind in ("nbd", "loop", "fuse", "unix"):
        assert kind in done.stdout
