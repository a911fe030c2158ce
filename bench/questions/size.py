"""Bytes of the programs as they are installed, and memory of a server with one session after the other."""

import contextlib

from harness import MIB, noise, resident, serve, share
from report import Row

TITLE = "How small it is"

SESSIONS = 16


def run(bench):
    image = bench.place / "little"
    noise(image, MIB)
    folder = bench.folder()
    named = {str(n): {"device": f"unix:{folder}/{n}.sock", "cache": 0} for n in range(SESSIONS)}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(bench, named))
        server.folder = folder
        alone = resident(server.process.pid)
        for name in named:
            stack.enter_context(share(bench, server, image, name))
            server.device(name)
        each = (resident(server.process.pid) - alone) / SESSIONS
    return [
        Row("the filter alone", bench.small.stat().st_size / 1e6, "MB", "stripped", target=("at most", 1.5)),
        Row("everything", bench.program.stat().st_size / 1e6, "MB", "stripped", target=("at most", 6)),
        Row("serve, without a session", alone, "MB", "resident", target=("at most", 12)),
        Row("each further session", each, "MB", "resident, cache 0", target=("at most", 1)),
    ]
