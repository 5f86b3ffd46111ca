"""A real node's log and metrics: complete, and silent about what is nobody's business."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.processes import NodeProcess

BODY = "meet me at the harbour at nine"
NOTE = "bring the blue suitcase"

pytestmark = pytest.mark.process


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "data", "--log-level", "debug", "--log-format", "json") as node:
        yield node


def ask(node: NodeProcess, path: str, token: str, content: dict[str, Any] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        node.url + path,
        data=None if content is None else json.dumps(content).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_neither_tokens_nor_bodies_nor_the_secret_are_logged_or_measured(node: NodeProcess) -> None:
    good, forged = node.token("alice"), node.token("mallory") + "x"
    conversation = {"kind": "direct", "members": ["bob"], "client_msg_id": "c1"}
    status, made = ask(node, "/v1/conversations", good, conversation)
    assert status == 201, made
    path = f"/v1/conversations/{made['conversation_id']}/entries"
    message = {"client_msg_id": "m1", "body": BODY, "metadata": {"note": NOTE}}
    assert ask(node, path, good, message)[0] in {200, 201}
    assert ask(node, path, good, message | {"body": BODY + "!"})[0] == 409
    assert ask(node, path, forged, message)[0] == 401
    assert ask(node, path, good, message | {"client_msg_id": 5})[0] == 400
    with urllib.request.urlopen(node.url + "/metrics", timeout=30) as answer:
        metrics = answer.read().decode()
    secret = node.secret
    assert node.terminate() == 0
    log = node.stderr_path.read_text()
    assert log
    for line in log.splitlines():
        assert json.loads(line)["event"]
    for told in (log, metrics):
        for private in (BODY, NOTE, secret, *good.split("."), *forged.split(".")):
            assert private not in told


def test_metrics_of_a_node_that_has_done_something(node: NodeProcess) -> None:
    token = node.token("alice")
    status, made = ask(node, "/v1/conversations", token, {"kind": "direct", "members": ["bob"], "client_msg_id": "c1"})
    assert status == 201
    path = f"/v1/conversations/{made['conversation_id']}/entries"
    for number in range(3):
        assert ask(node, path, token, {"client_msg_id": f"m{number}", "body": BODY})[0] in {200, 201}
    with urllib.request.urlopen(node.url + "/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert values["tidegate_sends_total"] == 3
    assert values["tidegate_entries_appended_total"] == 3
    assert values["tidegate_conversations_loaded"] == 1
    assert values["tidegate_commands_waiting"] == 0
    assert values["tidegate_commit_seconds_count"] >= 2
    assert values["tidegate_loop_passes_total"] > 0
    assert values["tidegate_loop_stall_seconds_max"] > 0
