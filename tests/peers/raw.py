"""An NBD client that sends anything, for what libnbd does not let through.

Constants and layouts are those of doc/proto.md in the NetworkBlockDevice/nbd repository.
"""

import socket
import struct

NBDMAGIC, IHAVEOPT = b"NBDMAGIC", b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS = 8, 9, 10, 11

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID = 0x80000001, 0x80000002, 0x80000003
REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_TOO_BIG = 0x80000005, 0x80000006, 0x80000009

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = range(8)

EPERM, EIO, EINVAL, ENOTSUP, EOVERFLOW = 1, 5, 22, 95, 75

CHUNK_DONE = 1
CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CHUNK_BLOCK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002


class Ended(Exception):
    """The server closed the connection."""


class Client:
    """One connection."""

    def __init__(self, path):
        self.take(socket.socket(socket.AF_UNIX))
        self.socket.connect(str(path))

    @classmethod
    def over(cls, connection):
        """On a connection that is there already."""
        client = cls.__new__(cls)
        client.take(connection)
        return client

    def take(self, connection):
        self.socket = connection
        self.socket.settimeout(60)
        self.structured = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                part = self.socket.recv(length - len(data))
            except ConnectionError as error:
                raise Ended from error
            if not part:
                raise Ended
            data += part
        return bytes(data)

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Ended from error

    def at_end(self):
        """Whether the server closes the connection, without another byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def greet(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        """Reads the server's greeting, answers with the client's flags, returns the server's."""
        assert self.receive(16) == NBDMAGIC + IHAVEOPT
        (server,) = struct.unpack(">H", self.receive(2))
        self.send(struct.pack(">I", flags))
        return server

    def send_option(self, option, data=b"", length=None):
        self.send(option_bytes(option, data, length))

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC
        return option, kind, self.receive(length)

    def option(self, option, data=b""):
        """Sends an option and returns the replies up to the final one: [(type, payload), …]."""
        self.send_option(option, data)
        replies = []
        while not replies or replies[-1][0] in (REP_SERVER, REP_INFO, REP_META_CONTEXT):
            answered, kind, payload = self.option_reply()
            assert answered == option
            replies.append((kind, payload))
        return replies

    def export_name(self, name=b"", no_zeroes=True):
        """NBD_OPT_EXPORT_NAME; returns size and transmission flags."""
        self.send_option(OPT_EXPORT_NAME, name)
        size, flags = struct.unpack(">QH", self.receive(10))
        if not no_zeroes:
            assert self.receive(124) == bytes(124)
        return size, flags

    def go(self, name=b"", structured=False, contexts=()):
        """Into transmission by NBD_OPT_GO; returns size and transmission flags."""
        self.greet()
        if structured:
            assert self.option(OPT_STRUCTURED_REPLY) == [(REP_ACK, b"")]
            self.structured = True
        if contexts:
            assert self.option(OPT_SET_META_CONTEXT, meta_query(name, *contexts))[-1] == (REP_ACK, b"")
        replies = self.option(OPT_GO, info_request(name))
        assert replies[-1] == (REP_ACK, b"")
        return next(struct.unpack(">QH", p[2:]) for k, p in replies if p[:2] == b"\0\0")

    def request(self, kind, offset=0, length=0, flags=0, cookie=1, data=b"", magic=REQUEST_MAGIC):
        self.send(struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length) + data)

    def reply(self, data_length=0):
        """One whole reply as (cookie, errno, data)."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == SIMPLE_REPLY_MAGIC:
            errno, cookie = struct.unpack(">IQ", self.receive(12))
            return cookie, errno, b"" if errno else self.receive(data_length)
        assert magic == STRUCTURED_REPLY_MAGIC and self.structured
        errno, data, done = 0, bytearray(data_length), False
        while not done:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            payload = self.receive(length)
            done = flags & CHUNK_DONE
            if kind & 0x8000:
                (errno,) = struct.unpack(">I", payload[:4])
            if not done:
                assert self.receive(4) == struct.pack(">I", STRUCTURED_REPLY_MAGIC)
        return cookie, errno, bytes(data)

    def answers(self, *request, **options):
        """The errno that a request is answered with."""
        self.request(*request, **options)
        return self.reply()[1]


def option_bytes(option, data=b"", length=None):
    """An option with its data, and a length that may be wrong."""
    return IHAVEOPT + struct.pack(">II", option, len(data) if length is None else length) + data


def info_request(name=b"", *kinds):
    """The data of NBD_OPT_INFO and NBD_OPT_GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)


def meta_query(name=b"", *queries):
    """The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""
    parts = b"".join(struct.pack(">I", len(query)) + query for query in queries)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + parts
