"""Every option of the handshake, against each of our servers: by libnbd, and by hand where libnbd is too polite."""

import struct

import nbd
import pytest
import raw


@pytest.fixture
def options(peer):
    """A libnbd handle in option mode."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_full_info(True)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_unix(str(peer.socket))
    return handle


def check_read_only_disk(handle, peer):
    assert handle.get_size() == len(peer.content)
    assert handle.is_read_only()
    assert handle.can_flush()
    # A link has one client; a socket device may have many.
    assert handle.can_multi_conn() or peer.kind == "nbd.js"
    assert handle.pread(4096, 512) == peer.content[512 : 512 + 4096]


def test_go_tells_size_flags_and_limits(peer, options):
    options.opt_go()
    check_read_only_disk(options, peer)
    assert options.get_protocol() == "newstyle-fixed"
    assert options.get_structured_replies_negotiated()
    assert options.can_df()
    assert options.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    assert options.get_block_size(nbd.SIZE_MINIMUM) == 1
    preferred = options.get_block_size(nbd.SIZE_PREFERRED)
    assert preferred & (preferred - 1) == 0
    assert preferred <= options.get_block_size(nbd.SIZE_MAXIMUM)
    assert options.get_canonical_export_name() in peer.names


def test_info_tells_the_same_and_go_still_follows(peer, options):
    options.opt_info()
    size = options.get_size()
    options.opt_go()
    assert options.get_size() == size == len(peer.content)


def test_list_names_the_exports(peer, options):
    names = []
    options.opt_list(lambda name, description: names.append(name))
    assert names and set(names) <= peer.names
    options.opt_go()


def test_every_listed_export_can_be_opened(peer):
    for name in peer.names:
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(str(peer.socket))
        check_read_only_disk(handle, peer)


def test_an_unknown_export_is_refused_and_another_can_be_asked_for(options):
    options.set_export_name("nowhere")
    for ask in (options.opt_info, options.opt_go):
        with pytest.raises(nbd.Error) as refused:
            ask()
        assert refused.value.errno == "ENOENT"
    options.set_export_name("")
    options.opt_go()


def test_meta_contexts_are_listed(options):
    found = []
    options.opt_list_meta_context(found.append)
    assert found == [nbd.CONTEXT_BASE_ALLOCATION]


def test_an_unknown_meta_context_is_left_out(peer):
    handle = nbd.NBD()
    handle.add_meta_context("x-other:thing")
    handle.connect_unix(str(peer.socket))
    assert not handle.can_meta_context("x-other:thing")
    check_read_only_disk(handle, peer)


def test_without_structured_replies(peer):
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.connect_unix(str(peer.socket))
    assert not handle.get_structured_replies_negotiated()
    assert not handle.can_df()
    check_read_only_disk(handle, peer)


def test_abort_is_answered_and_ends_the_connection(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        assert client.option(raw.OPT_ABORT) == [(raw.REP_ACK, b"")]
        assert client.at_end()


def test_abort_by_libnbd(options):
    options.opt_abort()


@pytest.mark.parametrize("no_zeroes", [True, False])
def test_export_name(peer, no_zeroes):
    for name in peer.names:
        with raw.Client(peer.socket) as client:
            client.greet(raw.FIXED_NEWSTYLE | (raw.NO_ZEROES if no_zeroes else 0))
            size, flags = client.export_name(name.encode(), no_zeroes)
            assert size == len(peer.content)
            assert flags & 0b11 == 0b11, "has flags, read-only"
            client.request(raw.CMD_READ, 512, 512, cookie=7)
            assert client.reply(512) == (7, 0, peer.content[512:1024])


def test_export_name_by_a_client_of_plain_newstyle(peer):
    handle = nbd.NBD()
    handle.set_handshake_flags(0)
    handle.connect_unix(str(peer.socket))
    assert handle.get_protocol() == "newstyle"
    check_read_only_disk(handle, peer)


def test_export_name_of_no_export_ends_the_connection(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        client.send_option(raw.OPT_EXPORT_NAME, b"nowhere")
        assert client.at_end()


@pytest.mark.parametrize("option", [raw.OPT_STARTTLS, raw.OPT_EXTENDED_HEADERS, 4, 0x7FFF, 0xFFFFFFFF])
def test_options_that_we_do_not_have_are_refused_and_the_handshake_goes_on(peer, option):
    with raw.Client(peer.socket) as client:
        client.greet()
        replies = client.option(option, b"data that nobody asked for" if option > 11 else b"")
        assert [kind for kind, _ in replies] == [raw.REP_ERR_UNSUP]
        replies = client.option(raw.OPT_GO, raw.info_request())
        assert replies[-1] == (raw.REP_ACK, b"")


def test_tls_that_is_allowed_but_not_required_falls_back(peer):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_ALLOW)
    handle.connect_unix(str(peer.socket))
    assert not handle.get_tls_negotiated()
    check_read_only_disk(handle, peer)


MALFORMED = {
    "LIST with data": (raw.OPT_LIST, b"x"),
    "STRUCTURED_REPLY with data": (raw.OPT_STRUCTURED_REPLY, b"x"),
    "GO without data": (raw.OPT_GO, b""),
    "GO with a name longer than its data": (raw.OPT_GO, struct.pack(">I", 1000)),
    "INFO with data left over": (raw.OPT_INFO, raw.info_request() + b"x"),
    "INFO with fewer requests than announced": (raw.OPT_INFO, struct.pack(">IH", 0, 9)),
    "LIST_META_CONTEXT without data": (raw.OPT_LIST_META_CONTEXT, b""),
    "SET_META_CONTEXT cut short": (raw.OPT_SET_META_CONTEXT, raw.meta_query(b"", b"base:allocation")[:-1]),
}


@pytest.mark.parametrize(("option", "data"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_data_of_an_option_is_refused_and_the_handshake_goes_on(peer, option, data):
    with raw.Client(peer.socket) as client:
        client.greet()
        if option == raw.OPT_SET_META_CONTEXT:
            client.option(raw.OPT_STRUCTURED_REPLY)
        assert [kind for kind, _ in client.option(option, data)] == [raw.REP_ERR_INVALID]
        assert client.option(raw.OPT_GO, raw.info_request())[-1] == (raw.REP_ACK, b"")


def test_meta_contexts_need_structured_replies(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        query = raw.meta_query(b"", b"base:allocation")
        assert [kind for kind, _ in client.option(raw.OPT_SET_META_CONTEXT, query)] == [raw.REP_ERR_INVALID]


def test_every_information_that_is_asked_for(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        kinds = (raw.INFO_NAME, raw.INFO_DESCRIPTION, raw.INFO_BLOCK_SIZE, 999)
        replies = client.option(raw.OPT_GO, raw.info_request(b"", *kinds))
        assert replies.pop() == (raw.REP_ACK, b"")
        told = {struct.unpack(">H", payload[:2])[0]: payload[2:] for _, payload in replies}
        assert told[raw.INFO_EXPORT][:8] == struct.pack(">Q", len(peer.content))
        assert told[raw.INFO_NAME].decode() in peer.names
        minimum, preferred, maximum = struct.unpack(">III", told[raw.INFO_BLOCK_SIZE])
        assert minimum == 1 <= preferred <= maximum
        assert set(told) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("announced", "sent"), [(0xFFFFFFFF, 0), (1 << 20, 1 << 20)])
def test_an_option_of_absurd_length_is_refused(peer, announced, sent):
    with raw.Client(peer.socket) as client:
        client.greet()
        try:
            client.send_option(raw.OPT_INFO, bytes(sent), announced)
            assert client.option_reply()[1] & 0x80000000
        except raw.Ended:
            pass


def test_a_wrong_magic_ends_the_connection(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        client.send(b"IHAVEOPS" + bytes(8))
        assert client.at_end()


def test_unknown_client_flags_end_the_connection(peer):
    with raw.Client(peer.socket) as client:
        client.greet(0x8000_0000 | raw.FIXED_NEWSTYLE)
        try:
            client.send_option(raw.OPT_LIST)
            assert client.at_end()
        except raw.Ended:
            pass


def test_a_handshake_byte_by_byte(peer):
    with raw.Client(peer.socket) as client:
        client.greet()
        go = raw.info_request(b"", raw.INFO_BLOCK_SIZE)
        data = raw.IHAVEOPT + struct.pack(">II", raw.OPT_GO, len(go)) + go
        data += struct.pack(">IHHQQI", raw.REQUEST_MAGIC, 0, raw.CMD_READ, 9, 1, 3)
        for byte in data:
            client.send(bytes([byte]))
        while client.option_reply()[1] != raw.REP_ACK:
            pass
        assert client.reply(3) == (9, 0, peer.content[1:4])
