"""Under a program that behaves as OpenBMC's bmcweb does: its limits are never exceeded."""

import os
import random
import signal
import threading

import bmcweb
import harness
import nbd
import pytest
import raw

READERS = 64


@pytest.fixture
def setting(scope):
    return scope.configure()


@pytest.fixture
def device(setting):
    return setting.socket()


def start(scope, setting, image, **behaviour):
    running = bmcweb.Bmcweb(scope, setting, bmcweb.Page(image.content), **behaviour)
    setting.attached(running.program)
    return running


def read_in_parallel(device, content, reads=12):
    """64 readers, each with its own connection; returns what any of them read wrongly."""
    wrong = []

    def reader(seed):
        choose = random.Random(seed)
        handle = nbd.NBD()
        handle.connect_unix(str(device))
        for _ in range(reads):
            length = choose.choice([512, 4096, 65536, 128 << 10, (128 << 10) + 512, 1 << 20])
            offset = choose.randrange(len(content) - length)
            if handle.pread(length, offset) != content[offset : offset + length]:
                wrong.append((seed, offset, length))
        handle.shutdown()

    readers = [threading.Thread(target=reader, args=(seed,)) for seed in range(READERS)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    return wrong


@pytest.mark.parametrize("burst", [False, True], ids=["answers as they are ready", "answers in bursts"])
def test_64_parallel_readers_never_exceed_its_limits(scope, setting, device, image, burst):
    running = start(scope, setting, image, burst=burst)
    assert read_in_parallel(device, image.content, 4 if burst else 12) == []
    assert running.faults == []
    assert running.largest["message"] <= bmcweb.MESSAGE_LIMIT
    assert running.largest["reads waiting"] >= 3, "requests are kept in flight"


def test_its_pipe_is_enlarged_so_that_no_write_waits(scope, setting, device, image):
    running = start(scope, setting, image, burst=True)
    assert running.pipe_size >= 1 << 20


def test_a_pipe_that_stays_small_overflows_nothing_either(scope, setting, device, image):
    running = start(scope, setting, image, burst=True)
    running.shrink_pipe()
    assert read_in_parallel(device, image.content, 4) == []
    assert running.faults == []
    assert running.largest["queue"] <= bmcweb.QUEUE_LIMIT


def test_a_stopped_proxy_fills_no_pipe(scope, setting, device, image):
    running = start(scope, setting, image)
    handle = nbd.NBD()
    handle.connect_unix(str(device))
    buffers = [nbd.Buffer(128 << 10) for _ in range(READERS)]
    for index, buffer in enumerate(buffers):
        handle.aio_pread(buffer, (index % 32) * (128 << 10))
    for _ in range(20):
        os.kill(running.program.pid, signal.SIGSTOP)
        handle.poll(20)
        os.kill(running.program.pid, signal.SIGCONT)
        handle.poll(20)
    while handle.aio_in_flight() > 0:
        handle.poll(-1)
    for index, buffer in enumerate(buffers):
        offset = (index % 32) * (128 << 10)
        assert buffer.to_bytearray() == image.content[offset : offset + (128 << 10)]
    assert running.faults == []


def test_the_page_of_webui_vue_is_asked_for_its_one_option(scope, setting, image):
    running = start(scope, setting, image)
    assert running.page.options[-1] == raw.OPT_EXPORT_NAME
    assert running.faults == []


def test_the_tail_is_never_asked_for_beyond_its_end(scope, setting, device):
    path = scope.folder / "odd"
    content = harness.make_image(path, 1_000_001)
    running = bmcweb.Bmcweb(scope, setting, bmcweb.Page(content))
    setting.attached(running.program)
    handle = nbd.NBD()
    handle.connect_unix(str(device))
    padded = content + bytes(-len(content) % 512)
    assert handle.pread(len(padded), 0) == padded
    assert running.faults == []


@pytest.mark.parametrize("reading", [False, True], ids=["idle", "while it is read"])
def test_it_is_not_kept_waiting_at_the_end(scope, setting, device, image, reading):
    setting.hook()
    running = start(scope, setting, image)
    harness.wait_until("the start hook was called", setting.calls)
    if reading:
        handle = nbd.NBD()
        handle.connect_unix(str(device))
        for index in range(READERS):
            handle.aio_pread(nbd.Buffer(1 << 20), index << 9)
        harness.wait_until("reads are under way", lambda: handle.poll(10) and running.largest["message"] > 1 << 16)
    status, seconds = running.close()
    assert status == 0
    assert seconds < harness.END_SECONDS + harness.SLACK_SECONDS
    assert [arguments for arguments, _ in setting.calls()] == [["start", "0"], ["stop", "0"]]
    assert not device.exists()


def test_requests_that_nobody_reads_do_not_block_the_end(scope, setting, device, image):
    running = start(scope, setting, image)
    running.stop_reading()
    handle = nbd.NBD()
    handle.connect_unix(str(device))
    for index in range(10 * READERS):
        handle.aio_pread(nbd.Buffer(512), index << 9)
    handle.poll(100)
    status, seconds = running.close()
    assert status == 0
    assert seconds < harness.END_SECONDS + harness.SLACK_SECONDS
