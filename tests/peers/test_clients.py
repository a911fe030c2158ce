"""Programs that others wrote, as clients of each of our servers."""

import hashlib
import json

import harness
import pytest


def test_nbdinfo(peer):
    exports = json.loads(harness.run("nbdinfo", "--json", peer.uri))["exports"]
    assert exports[0]["export-size"] == len(peer.content)
    assert exports[0]["is_read_only"] is True
    assert exports[0]["contexts"] == ["base:allocation"]


def test_nbdinfo_lists(peer):
    exports = json.loads(harness.run("nbdinfo", "--list", "--json", peer.uri))["exports"]
    names = {export["export-name"] for export in exports}
    assert names and names <= peer.names
    assert {export["export-size"] for export in exports} == {len(peer.content)}


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy(peer, scope, connections):
    copy = scope.folder / "copy"
    harness.run("nbdcopy", f"--connections={connections}", peer.uri, copy)
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(peer.content).digest()


def test_qemu_img_compare(peer, image):
    harness.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image.path, peer.uri)


def test_qemu_img_convert(peer, scope):
    copy = scope.folder / "copy"
    harness.run("qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", peer.uri, copy)
    assert copy.read_bytes() == peer.content


def test_qemu_img_map(peer):
    extents = json.loads(harness.run("qemu-img", "map", "--output=json", "-f", "raw", peer.uri))
    end = 0
    for extent in extents:
        assert extent["start"] == end
        end += extent["length"]
        if extent["zero"]:
            assert not any(peer.content[extent["start"] : end])
    assert end == len(peer.content)
    if peer.kind != "nbd.js":
        assert any(extent["zero"] for extent in extents), "the image's holes are told"


def test_qemu_io(peer):
    zeros = 256 << 10
    commands = ["read 0 1M", f"read -P 0 {zeros} {zeros}", f"aio_read {zeros - 512} 1024", "aio_flush", "flush"]
    words = [word for command in commands for word in ("-c", command)]
    printed = harness.run("qemu-io", "-r", "-f", "raw", *words, peer.uri)
    assert "failed" not in printed
    assert "read 1048576/1048576 bytes at offset 0" in printed


def test_qemu_io_may_not_write(peer):
    done = harness.run("qemu-io", "-f", "raw", "-c", "write 0 512", peer.uri, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize("pattern", ["read", "randread"])
def test_fio(peer, pattern):
    job = ["--name=job", "--ioengine=nbd", f"--uri={peer.uri}", f"--rw={pattern}", "--bs=16k", "--iodepth=64"]
    printed = harness.run("fio", *job, f"--size={len(peer.content) // 16384 * 16384}", "--output-format=json")
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["read"]["total_ios"] == len(peer.content) // 16384
