"""The server does what docs/openapi.yaml says: asked by schemathesis whatever that document allows, and more."""

import json
import signal
import urllib.error
import urllib.request

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
import yaml

import harness

#: Requests made up for each operation, beside those that try each border of the document.
EXAMPLES = 20

#: What has no end, and links, which only begin as HTTP: others look at those.
ELSEWHERE = ["listen", "link", "linkAsWebuiVue"]


def strict(document):
    """The document, where answers may have no member that it lacks: it can't fall behind the server."""
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return document


DOCUMENT = strict(yaml.safe_load((harness.ROOT / "docs/openapi.yaml").read_text()))
OPERATIONS = schemathesis.openapi.from_dict(DOCUMENT)
SETTINGS = hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)


def validate(name, value):
    """Compares a value with a schema of the document."""
    components = DOCUMENT["components"]
    jsonschema_rs.validate({"components": components, "$ref": f"#/components/schemas/{name}"}, value)


class Server:
    """A server whose configuration `0` keeps what is attached."""

    def __init__(self, scope, hook=None):
        self.scope = scope
        metadata = {"description": "a disk", "any": [1, None]}
        self.setting = scope.configure(
            {
                "0": {"device": "unix:", "default": True, "keep": "memory", "metadata": metadata},
                "lab 2": {"device": "unix:"},
            }
        )
        if hook:
            self.setting.hook(hook)
        address = harness.Server(scope, self.setting).address
        self.url, self.token = address.split("/#token=")
        self.headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def ask(self, path, body=None):
        """An answer, whatever its status."""
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", body, self.headers)
        try:
            return urllib.request.urlopen(request, timeout=harness.PATIENCE)
        except urllib.error.HTTPError as refusal:
            return refusal

    def configuration(self, name):
        with self.ask(f"configurations/{name}") as answer:
            configuration = json.load(answer)
        validate("Configuration", configuration)
        return configuration

    def in_state(self, name, state, **members):
        """Waits until a session is in a state, and shows these members."""

        def reached():
            session = self.configuration(name)["session"] or {"state": None}
            return session["state"] == state and members.items() <= session.items()

        harness.wait_until(f"{name} is {state}", reached)

    def share(self, name):
        image = self.scope.subfolder("image-") / "disk.img"
        harness.make_image(image, 1 << 20)
        address = f"{self.url.replace('http', 'ws')}/nbd/{name}"
        return self.scope.start(harness.PROGRAM, "share", image, address, "--token", self.token)


@pytest.fixture(scope="module")
def server():
    with harness.Scope.new() as scope:
        yield Server(scope)


@pytest.fixture
def scope():
    with harness.Scope.new() as scope:
        yield scope


@OPERATIONS.exclude(operation_id=ELSEWHERE).parametrize()
@SETTINGS
def test_every_operation_answers_as_described(case, server):
    case.call_and_validate(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"})


@OPERATIONS.include(tag=["state", "watching"]).exclude(operation_id="health").parametrize()
@SETTINGS
def test_nobody_unknown_gets_an_answer(case, server):
    assert case.call_and_validate(base_url=server.url).status_code >= 400


def test_a_session_is_described_in_each_of_its_states(scope):
    end = scope.folder / "end"
    server = Server(scope, hook=f'[ "$1" = start ] || while ! [ -e {end} ]; do sleep 0.1; done')
    sharing = server.share("lab%202")
    server.in_state("lab%202", "attached", keep=None)
    sharing.send(signal.SIGKILL)
    server.in_state("lab%202", "held")
    with server.ask("configurations/lab%202/eject", b'{"force": true}') as ejected:
        assert ejected.status == 202
        draining = json.load(ejected)
    validate("Configuration", draining)
    assert draining["session"]["draining_for"]
    server.in_state("lab%202", "draining")
    end.touch()
    harness.wait_until("it ends", lambda: server.configuration("lab%202")["session"] is None)


def test_a_kept_copy_and_who_uses_the_device_are_described(scope):
    server = Server(scope)
    server.share("0")
    harness.wait_until("a copy", lambda: ((server.configuration("0")["session"] or {}).get("keep") or {}).get("whole"))
    with scope.connect(server.setting.socket()) as client:
        assert client.recv(1), "a client is one once it is greeted"
        with server.ask("configurations/0/eject", b"{}") as refused:
            assert refused.status == 409
            refusal = json.load(refused)
    validate("Error", refusal)
    assert refusal["users"]


def test_an_event_is_a_configuration_without_what_one_may(server):
    names = set()
    with server.ask("events") as events:
        assert events.headers["Content-Type"] == "text/event-stream"
        while len(names) < 2:
            line = events.readline().decode().rstrip("\n")
            assert line in ("", ":", "event: configuration") or line.startswith("data: ")
            if line.startswith("data: "):
                configuration = json.loads(line.removeprefix("data: "))
                validate("Configuration", configuration)
                assert "may" not in configuration
                names.add(configuration["name"])
