"""The dashboard asks for what /metrics tells, and /metrics keeps to Prometheus's conventions."""

import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import places

DASHBOARD = places.ROOT / "packaging/grafana/nbd-proxy.json"

#: Ours, and Prometheus's own.
LABELS = {"instance", "version", "configuration", "state", "outcome", "code", "limit"}


@contextlib.contextmanager
def asked(address, headers, body=None):
    """An answer, whatever its status."""
    request = urllib.request.Request(address, body, headers)
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    with answer:
        yield answer


def refused_link(address):
    """A link of somebody who has shown no right to it, until it is closed."""
    url = urllib.parse.urlsplit(address)
    lines = [
        "GET /nbd/0 HTTP/1.1",
        f"Host: {url.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    with socket.create_connection((url.hostname, url.port), timeout=30) as link:
        link.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"not allowed" not in answer:
            part = link.recv(4096)
            assert part, answer
            answer += part


def told(address, authorization):
    """What a server tells once it has refused something of every kind."""
    content = {"Content-Type": "application/json"}
    refused_link(address)
    with (
        asked(f"{address}api/v1/login", content, b'{"token": "wrong"}'),
        asked(f"{address}api/v1/events", authorization),
        asked(f"{address}api/v1/events", authorization) as one_too_many,
    ):
        assert one_too_many.status == 429
        with asked(f"{address}metrics", authorization) as answer:
            return answer.read().decode()


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """A server's metrics: their text, and the type of each."""
    folder = tmp_path_factory.mktemp("serve")
    config = folder / "config.json"
    config.write_text('{"configurations": {"0": {"device": "unix:"}}, "serve": {"limits": {"events": 1}}}')
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder), "STATE_DIRECTORY": str(folder / "state")}
    command = [places.PROGRAM, "serve", "--config", config, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            address, token = server.stdout.readline().strip().split("#token=")
            text = told(address, {"Authorization": f"Bearer {token}"})
        finally:
            server.terminate()
    return text, dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def samples(types):
    """The names by which Prometheus knows them."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {name + suffixes.get(kind, "") for name, kind in types.items()}


def expressions():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [variable["query"] for variable in dashboard["templating"]["list"]]


def test_every_metric_of_the_dashboard_is_there_and_every_metric_is_on_it(metrics):
    _, types = metrics
    wanted = {name for expression in expressions() for name in re.findall(r"\bnbd_proxy_\w+", expression)}
    assert wanted == samples(types)


def test_the_dashboard_selects_by_labels_that_there_are():
    for expression in expressions():
        assert set(re.findall(r"(\w+)=~?\"", expression)) <= LABELS
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouped.split(", ")) <= LABELS


def test_panels_do_not_overlap_and_say_what_they_show():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        assert panel["title"] and panel["description"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells


def test_metrics_have_help_and_names_by_convention(metrics):
    text, types = metrics
    # Strict: order, escapes, suffixes, duplicates, and that nothing is of no type.
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == set(types)
    for name, kind in types.items():
        assert re.search(rf"^# HELP {name} \w", text, re.MULTILINE), name
        assert re.fullmatch(r"nbd_proxy_[a-z_]+", name)
        assert kind in {"counter", "gauge", "info"}
        assert not re.search(r"_(kb|mb|ms|minutes|percent|count|sum|total|kib|mib)$", name), "base units, and no reserved endings"
        unit = re.search(r"_(bytes|seconds)$", name)
        assert families[name].unit == (unit.group(1) if unit else ""), name
    assert text.endswith("# EOF\n")
