"""Every command of transmission, against each of our servers: by libnbd, and by hand where libnbd is too polite."""

import random
import threading

import nbd
import pytest
import raw


@pytest.fixture
def disk(peer):
    """A libnbd handle in transmission that lets every request through."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_strict_mode(0)
    handle.connect_unix(str(peer.socket))
    return handle


@pytest.fixture
def client(peer):
    """A raw client in transmission, with structured replies and base:allocation."""
    with raw.Client(peer.socket) as client:
        client.go(structured=True, contexts=[b"base:allocation"])
        yield client


def still_serves(handle, peer):
    return handle.pread(512, 0) == peer.content[:512]


def test_the_whole_image_in_one_read(peer, disk):
    assert disk.pread(len(peer.content), 0) == peer.content


def test_reads_of_any_length_anywhere(peer, disk):
    choose = random.Random(2)
    for _ in range(100):
        offset = choose.randrange(len(peer.content))
        length = min(choose.choice([1, 7, 511, 512, 4096, 65537, 300_000]), len(peer.content) - offset)
        assert disk.pread(length, offset) == peer.content[offset : offset + length]


@pytest.mark.parametrize("flags", [0, nbd.CMD_FLAG_DF])
def test_structured_reads_cover_each_byte_once(peer, disk, flags):
    length = 60_000 if flags else 1_000_000
    offset = (256 << 10) - 30_000
    covered = []

    def chunk(data, at, status, error):
        assert status in (nbd.READ_DATA, nbd.READ_HOLE)
        assert bytes(data) == peer.content[at : at + len(data)] or not any(data)
        covered.append((at, len(data)))

    content = disk.pread_structured(length, offset, chunk, flags)
    assert content == peer.content[offset : offset + length]
    covered.sort()
    assert sum(size for _, size in covered) == length
    assert not flags or len(covered) == 1


def test_a_read_past_the_end_is_invalid(peer, disk):
    for offset, length in ((len(peer.content) - 1, 2), (len(peer.content), 1), (1 << 62, 512)):
        with pytest.raises(nbd.Error) as refused:
            disk.pread(length, offset)
        assert refused.value.errno == "EINVAL"
    assert still_serves(disk, peer)


def test_an_offset_that_overflows_is_invalid(client):
    assert client.answers(raw.CMD_READ, 2**64 - 512, 1024) == raw.EINVAL


def test_writing_is_not_permitted(peer, disk):
    refused = {}
    for name, attempt in {
        "write": lambda: disk.pwrite(b"x" * 512, 0),
        "write with FUA": lambda: disk.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA),
        "large write": lambda: disk.pwrite(b"x" * (1 << 20), 0),
        "trim": lambda: disk.trim(512, 0),
        "zero": lambda: disk.zero(512, 0),
        "zero without a hole": lambda: disk.zero(512, 0, nbd.CMD_FLAG_NO_HOLE),
        "fast zero": lambda: disk.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO),
    }.items():
        with pytest.raises(nbd.Error) as error:
            attempt()
        refused[name] = error.value.errno
    # Of a flag that does not fit and of a read-only export, either may be told.
    assert set(refused.values()) <= {"EPERM", "EINVAL"}, refused
    assert {refused[name] for name in ("write", "large write", "trim", "zero")} == {"EPERM"}, refused
    assert still_serves(disk, peer)


def test_flush_is_offered_and_done(disk):
    assert disk.can_flush()
    disk.flush()


def test_cache(disk, peer):
    assert disk.can_cache()
    disk.cache(65536, 4096)
    with pytest.raises(nbd.Error) as refused:
        disk.cache(65536, len(peer.content))
    assert refused.value.errno == "EINVAL"


def extents(disk, offset, length, flags=0):
    found = []

    def extent(context, at, entries, error):
        assert (context, at) == (nbd.CONTEXT_BASE_ALLOCATION, offset)
        found.extend(zip(entries[::2], entries[1::2], strict=True))

    disk.block_status(length, offset, extent, flags)
    return found


def test_block_status_describes_the_image(peer, disk):
    offset, told = 0, []
    while offset < len(peer.content):
        for length, flags in extents(disk, offset, len(peer.content) - offset):
            length = min(length, len(peer.content) - offset)
            assert length > 0
            if flags & nbd.STATE_ZERO:
                assert not any(peer.content[offset : offset + length])
            told.append(flags)
            offset += length
    if peer.kind != "nbd.js":
        assert any(flags & nbd.STATE_HOLE for flags in told), "the image's holes are told"


def test_block_status_of_one_extent(peer, disk):
    for offset in (0, 1, 300_000, len(peer.content) - 1):
        rest = len(peer.content) - offset
        ((length, _),) = extents(disk, offset, rest, nbd.CMD_FLAG_REQ_ONE)
        assert 0 < length <= rest


def test_block_status_past_the_end_is_invalid(peer, client):
    assert client.answers(raw.CMD_BLOCK_STATUS, len(peer.content) - 512, 1024) == raw.EINVAL
    assert client.answers(raw.CMD_BLOCK_STATUS, 0, 512) == 0


def test_block_status_that_was_not_negotiated_is_invalid(peer):
    with raw.Client(peer.socket) as client:
        client.go(structured=True)
        assert client.answers(raw.CMD_BLOCK_STATUS, 0, 512) == raw.EINVAL
        assert client.answers(raw.CMD_READ, 0, 512) == 0


def test_an_unknown_command_is_invalid(client):
    for kind in (8, 99, 0xFFFF):
        assert client.answers(kind, cookie=kind) == raw.EINVAL
    assert client.answers(raw.CMD_READ, 0, 512) == 0


def test_unknown_flags_are_invalid(client):
    for kind in (raw.CMD_READ, raw.CMD_FLUSH, raw.CMD_BLOCK_STATUS):
        assert client.answers(kind, 0, 512, flags=0x8000) == raw.EINVAL
    assert client.answers(raw.CMD_READ, 0, 512) == 0


def test_a_read_above_the_largest_block_is_refused_and_the_next_one_served(peer, disk):
    try:
        content = disk.pread((64 << 20) + 1, 0)
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "EOVERFLOW", "ERANGE")
    else:
        raise AssertionError(f"{len(content)} bytes, which is more than there are")
    assert still_serves(disk, peer)


def test_64_requests_in_flight_are_each_answered_with_their_own_bytes(peer, disk):
    choose = random.Random(3)
    buffers = {}
    for _ in range(64):
        offset = choose.randrange(len(peer.content) - 8192)
        buffer = nbd.Buffer(8192)
        buffers[disk.aio_pread(buffer, offset)] = (offset, buffer)
    while disk.aio_in_flight() > 0:
        disk.poll(-1)
    for cookie, (offset, buffer) in buffers.items():
        assert disk.aio_command_completed(cookie)
        assert buffer.to_bytearray() == peer.content[offset : offset + 8192]


def test_eight_clients_at_once(peer):
    wrong = []

    def read_all(seed):
        handle = nbd.NBD()
        handle.connect_unix(str(peer.socket))
        choose = random.Random(seed)
        for _ in range(40):
            offset = choose.randrange(len(peer.content) - 65536)
            if handle.pread(65536, offset) != peer.content[offset : offset + 65536]:
                wrong.append((seed, offset))
        handle.shutdown()

    readers = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_disconnect_ends_that_client_only(peer, disk, client):
    client.request(raw.CMD_DISC)
    assert client.at_end()
    assert still_serves(disk, peer)


def test_disconnect_waits_for_nothing_that_is_lost(peer):
    with raw.Client(peer.socket) as client:
        client.go()
        client.request(raw.CMD_READ, 0, 512, cookie=5)
        client.request(raw.CMD_DISC, cookie=6)
        assert client.reply(512) == (5, 0, peer.content[:512])
        assert client.at_end()


def test_a_client_that_vanishes_in_mid_read_harms_nobody(peer, disk):
    for _ in range(5):
        with raw.Client(peer.socket) as client:
            client.go()
            for cookie in range(16):
                client.request(raw.CMD_READ, 0, 1 << 20, cookie=cookie)
    assert still_serves(disk, peer)


def test_a_wrong_request_magic_ends_that_client_only(peer, disk, client):
    client.request(raw.CMD_READ, 0, 512, magic=0x12345678)
    assert client.at_end()
    assert still_serves(disk, peer)
