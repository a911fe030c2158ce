"""Servers that others wrote, as the peer of the stdin/stdout form: our client's side."""

import socket
import time

import harness
import nbd
import pytest


def check_same(socket, content):
    """Reads the whole device, which is the image and zeros up to a sector's end."""
    handle = nbd.NBD()
    handle.connect_unix(str(socket))
    padded = content + bytes(-len(content) % 512)
    assert handle.get_size() == len(padded)
    assert handle.pread(len(padded), 0) == padded
    return handle


@pytest.mark.parametrize("options", [
    [],
    ["--no-sr"],
    # Plain newstyle: no fixed, so EXPORT_NAME only; with and without the 124 zeros.
    ["--mask-handshake=0"],
    ["--mask-handshake=1"],
    ["--mask-handshake=2"],
    ["--mask-handshake=1", "--no-sr"],
], ids=" ".join)
def test_nbdkit_with_any_handshake(scope, image, options):
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", *options, "file", image.path))
    check_same(fed.attached(), image.content)


def test_an_oldstyle_server_is_refused_with_a_reason(scope, image):
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "--oldstyle", "file", image.path))
    assert fed.program.wait() == 1
    assert "oldstyle" in fed.program.stderr.lower()


def test_a_server_without_the_export_is_refused_with_a_reason(scope, image):
    server = scope.nbdkit("-r", "--filter=exportname", "file", image.path,
                          "exportname=other", "exportname-strict=true")
    fed = harness.filter_fed_by(scope, server)
    assert fed.program.wait() == 1
    assert "export" in fed.program.stderr.lower()


def test_an_error_of_the_server_is_the_readers_and_ends_nothing(scope, image):
    failing = scope.folder / "failing"
    server = scope.nbdkit("-r", "--filter=error", "file", image.path,
                          "error-pread=EIO", "error-pread-rate=100%", f"error-file={failing}")
    fed = harness.filter_fed_by(scope, server)
    handle = check_same(fed.attached(), image.content)
    failing.touch()
    for _ in range(3):
        with pytest.raises(nbd.Error) as refused:
            handle.pread(4096, 0)
        assert refused.value.errno == "EIO"
    failing.unlink()
    assert handle.pread(4096, 0) == image.content[:4096]


def test_errors_now_and_then_among_many_requests(scope, image):
    server = scope.nbdkit("-r", "--filter=error", "file", image.path, "error-pread=ENOMEM", "error-pread-rate=20%")
    handle = nbd.NBD()
    handle.connect_unix(str(harness.filter_fed_by(scope, server).attached()))
    outcomes = {"right": 0, "failed": 0}
    for offset in range(0, 4 << 20, 32768):
        try:
            assert handle.pread(32768, offset) == image.content[offset : offset + 32768]
            outcomes["right"] += 1
        except nbd.Error:
            outcomes["failed"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_a_slow_server_answers_out_of_order(scope, image):
    server = scope.nbdkit("-r", "--filter=delay", "file", image.path, "delay-read=100ms")
    handle = nbd.NBD()
    handle.connect_unix(str(harness.filter_fed_by(scope, server).attached()))
    buffers = [nbd.Buffer(4096) for _ in range(32)]
    for index, buffer in enumerate(buffers):
        handle.aio_pread(buffer, index * 4096)
    while handle.aio_in_flight() > 0:
        handle.poll(-1)
    for index, buffer in enumerate(buffers):
        assert buffer.to_bytearray() == image.content[index * 4096 : (index + 1) * 4096]


@pytest.mark.parametrize("limits", [
    ["blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=64K"],
    ["blocksize-minimum=512", "blocksize-preferred=512", "blocksize-maximum=512"],
    ["blocksize-minimum=512", "blocksize-preferred=128K", "blocksize-maximum=32M"],
], ids=lambda limits: limits[-1])
def test_a_server_with_block_sizes_is_asked_in_its_sizes_only(scope, image, limits):
    server = scope.nbdkit("-r", "--filter=blocksize-policy", "file", image.path, *limits,
                          "blocksize-error-policy=error")
    handle = check_same(harness.filter_fed_by(scope, server).attached(), image.content)
    assert handle.pread(3, 1021) == image.content[1021:1024]


def test_a_server_is_never_asked_past_the_images_end(scope):
    path = scope.folder / "odd"
    content = harness.make_image(path, 1_000_001)
    log = scope.folder / "log"
    server = scope.nbdkit("-r", "--filter=log", "file", path, f"logfile={log}")
    check_same(harness.filter_fed_by(scope, server).attached(), content)
    reads = [line for line in log.read_text().splitlines() if " Read " in line and "offset=" in line]
    assert reads
    for line in reads:
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        assert int(fields["offset"], 16) + int(fields["count"], 16) <= len(content)


def test_a_request_is_at_most_128_kib(scope, image):
    log = scope.folder / "log"
    server = scope.nbdkit("-r", "--filter=log", "file", image.path, f"logfile={log}")
    check_same(harness.filter_fed_by(scope, server).attached(), image.content)
    counts = [int(line.split("count=")[1].split()[0], 16) for line in log.read_text().splitlines() if "count=" in line]
    assert 0 < max(counts) <= 128 << 10


def test_an_image_of_4_gib_and_more(scope):
    size = (1 << 42) + 512
    server = scope.nbdkit("-r", "pattern", f"size={size}")
    handle = nbd.NBD()
    handle.connect_unix(str(harness.filter_fed_by(scope, server).attached()))
    assert handle.get_size() == size
    for offset in (0, (1 << 32) - 4096, 1 << 41, size - 8192):
        expected = b"".join(position.to_bytes(8, "big") for position in range(offset, offset + 8192, 8))
        assert handle.pread(8192, offset) == expected


def test_an_empty_image_is_refused_with_a_reason(scope):
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "null", "size=0"))
    assert fed.program.wait() == 1
    assert "empty" in fed.program.stderr.lower()


def test_nbd_server(scope, image):
    ours, its = socket.socketpair()
    scope.stack.enter_context(ours)
    with its:
        # Port 0 is its way to serve the one connection on its standard input.
        scope.start("nbd-server", "-d", "-C", "/dev/null", "-r", "0", image.path, stdin=its)
    check_same(harness.Filter(scope, scope.configure(), ours).attached(), image.content)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_qemu_nbd(scope, image, format):
    served = image.path
    if format == "qcow2":
        served = scope.folder / "image.qcow2"
        harness.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image.path, served)
    path = scope.folder / "qemu-nbd.sock"
    scope.start("qemu-nbd", "--read-only", "--persistent", "--shared=8", "-f", format, "-k", path, served)
    check_same(harness.filter_fed_by(scope, path).attached(), image.content)


def test_holes_are_told_as_the_server_tells_them(scope, image):
    server = scope.nbdkit("-r", "file", image.path)
    device = harness.filter_fed_by(scope, server).attached()
    maps = [harness.run("nbdinfo", "--map", "--totals", f"nbd+unix:///?socket={socket}") for socket in (server, device)]
    assert maps[0] == maps[1]


def test_the_server_may_vanish_in_mid_read(scope, image):
    server = scope.nbdkit("-r", "--filter=delay", "file", image.path, "delay-read=60")
    fed = harness.filter_fed_by(scope, server)
    handle = nbd.NBD()
    handle.connect_unix(str(fed.attached()))
    buffer = nbd.Buffer(4096)
    cookie = handle.aio_pread(buffer, 0)
    while handle.aio_is_processing() or handle.aio_is_connecting():
        handle.poll(100)
        if handle.aio_in_flight() == 1 and handle.aio_is_ready():
            break
    fed.connection.shutdown(2)
    fed.program.wait()
    with pytest.raises(nbd.Error):
        while not handle.aio_command_completed(cookie):
            handle.poll(1000)


def test_the_proxy_does_not_spin_while_nothing_happens(scope, image):
    fed = harness.filter_fed_by(scope, scope.nbdkit("-r", "file", image.path))
    handle = check_same(fed.attached(), image.content)
    handle.shutdown()
    before = fed.program.cpu_seconds()
    time.sleep(2)
    assert fed.program.cpu_seconds() - before < 0.5
