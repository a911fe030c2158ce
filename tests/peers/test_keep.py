"""A kept copy: once it is whole, whoever served the image may go."""

import json
import signal

import harness


def session(server, name="0"):
    shown = harness.run(harness.PROGRAM, "status", "--json", env=server.setting.env)
    configurations = json.loads(shown)["configurations"]
    return next(one for one in configurations if one["name"] == name)["session"]


def test_nbdcopy_after_the_sharer_was_killed(scope, image):
    kept = scope.subfolder("kept-")
    setting = scope.configure({"0": {"device": "unix:", "hold": 0, "keep": str(kept)}})
    server = harness.Server(scope, setting)
    sharing = server.share(image.path)
    device = server.attached()
    harness.wait_until("the copy", lambda: (session(server)["keep"] or {}).get("whole"))
    sharing.send(signal.SIGKILL)
    sharing.wait()
    copy = scope.folder / "copy"
    for connections in (1, 4):
        harness.run("nbdcopy", f"--connections={connections}", f"nbd+unix:///?socket={device}", copy)
        assert copy.read_bytes() == image.content
    harness.run(harness.PROGRAM, "eject", "0", env=setting.env)
    assert not list(kept.iterdir())
