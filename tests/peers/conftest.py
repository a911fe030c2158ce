"""Fixtures of every test here."""

import dataclasses
import pathlib

import pytest

import harness

#: A whole number of sectors, and of nothing larger.
IMAGE_SIZE = (5 << 20) + 1536


@pytest.fixture
def scope():
    """What the test starts and makes."""
    with harness.Scope.new() as scope:
        yield scope


@pytest.fixture(scope="session")
def image():
    """An image of noise and holes, for reading only."""
    with harness.Scope.new() as scope:
        path = scope.folder / "image"
        yield Image(path, harness.make_image(path, IMAGE_SIZE))


@dataclasses.dataclass
class Image:
    path: pathlib.Path
    content: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass
class Peer:
    """An NBD server under test."""

    kind: str
    socket: pathlib.Path
    names: set[str]
    content: bytes = dataclasses.field(repr=False)

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"


def fed_by_share(scope, image):
    server = harness.Server(scope, scope.configure())
    server.share(image.path)
    return Peer("share", server.attached(), {"", "0"}, image.content)


def fed_by_pipes(scope, image):
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path))
    return Peer("pipes", fed.attached(), {"", "0"}, image.content)


def nbd_js(scope, image):
    path = scope.folder / "nbdjs"
    bridge = scope.start("node", harness.ROOT / "tests/lib/nbdjs-bridge.mjs", path, image.path)
    harness.wait_until("the bridge listens", lambda: harness.listens(path) or not bridge.running)
    assert bridge.running, bridge.stderr
    return Peer("nbd.js", path, {"", image.path.name}, image.content)


@pytest.fixture(scope="session", params=[fed_by_share, fed_by_pipes, nbd_js], ids=lambda make: make.__name__)
def peer(request, image):
    """Each of our NBD servers in turn, serving the image."""
    with harness.Scope.new() as scope:
        yield request.param(scope, image)
