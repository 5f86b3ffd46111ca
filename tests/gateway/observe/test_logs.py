import errno
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.observe import logs
from protocol.frames import Authenticate, Send
from tests.gateway.auth.keys import hs256

SECRET_TEXT = "meet me at the harbour at nine"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


Written = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def written() -> Written:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_a_line(written: Written) -> None:
    log = structlog.get_logger()
    log.info("listening", port=8480, ratio=0.5, ok=True, nothing=None, names=["a", "b"])
    log.debug("not shown")
    log.warning("second", nested={"a": {"b": (1, "ü")}})
    first, second = written()
    assert first["event"] == "listening"
    assert first["level"] == "info"
    assert first["timestamp"].endswith("Z")
    assert (first["port"], first["ratio"], first["ok"], first["nothing"]) == (8480, 0.5, True, None)
    assert first["names"] == ["a", "b"]
    assert second["nested"] == {"a": {"b": [1, "ü"]}}


def test_ids_of_a_request_are_bound(written: Written) -> None:
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(connection=7, user="alice"):
        log.info("a")
    log.bind(conversation="d1").info("b")
    first, second = written()
    assert (first["connection"], first["user"]) == (7, "alice")
    assert "connection" not in second
    assert second["conversation"] == "d1"


@pytest.mark.parametrize(
    "key",
    [
        *("body", "Body", "token", "TOKEN", "secret", "authorization", "Authorization", "metadata", "password"),
        *("cookie", "payload", "auth_secret", "access_token", "message_body", "tokens"),
    ],
)
def test_forbidden_keys_are_withheld_at_any_depth(key: str, written: Written) -> None:
    log = structlog.get_logger()
    log.info("x", **{key: SECRET_TEXT})
    log.info("x", headers={key: SECRET_TEXT, "host": "h"}, deep=[[{key: [SECRET_TEXT]}]])
    with structlog.contextvars.bound_contextvars(**{key: SECRET_TEXT}):
        log.info("x")
    log.bind(**{key: SECRET_TEXT}).info("x")
    for event in written():
        assert SECRET_TEXT not in json.dumps(event)
        assert event["withheld"] == [key]
    assert written()[1]["headers"] == {"host": "h"}


def test_frames_are_logged_by_type_only(written: Written) -> None:
    log = structlog.get_logger()
    log.info("x", command=Send(1, "c", "m", SECRET_TEXT), raw=SECRET_TEXT.encode(), many=[Authenticate(1, SECRET_TEXT)])
    (event,) = written()
    assert SECRET_TEXT not in json.dumps(event)
    assert event["command"] == "<Send>"
    assert event["raw"] == "<bytes>"
    assert event["many"] == ["<Authenticate>"]


def test_tokens_are_masked_wherever_they_stand(written: Written) -> None:
    token = hs256()
    log = structlog.get_logger()
    log.info(f"got {token}", header=f"Bearer {token}", unsigned=token.rpartition(".")[0], list=[token], map={token: 1})
    try:
        raise ValueError(f"bad token {token}")
    except ValueError as error:
        log.exception("failed", error=error)
    first, second = written()
    head, payload, _ = token.split(".")
    for event in (first, second):
        assert head not in json.dumps(event)
        assert payload not in json.dumps(event)
    assert first["header"] == "Bearer <token>"
    assert second["error"] == "ValueError: bad token <token>"
    assert "ValueError: bad token <token>" in second["exception"]
    assert "Traceback" in second["exception"]


def test_tracebacks_show_no_local_values(written: Written) -> None:
    def fail(body: str) -> None:
        raise RuntimeError

    try:
        fail(SECRET_TEXT)
    except RuntimeError:
        structlog.get_logger().exception("failed")
    assert SECRET_TEXT not in json.dumps(written())


def test_libraries_are_held_to_the_same_rules(written: Written) -> None:
    token = hs256()
    library = logging.getLogger("some.library")
    library.warning("refused %s", token)
    library.info("chatter")
    (event,) = written()
    assert event["event"] == "refused <token>"
    assert event["level"] == "warning"


def test_the_driver_says_what_failed_without_a_traceback_and_not_what_the_node_says(written: Written) -> None:
    driver = logging.getLogger("cassandra.cluster")
    try:
        raise ConnectionRefusedError(111, "Connection refused")
    except ConnectionRefusedError:
        driver.warning("[control connection] Error connecting to %s:", "127.0.0.1:9042", exc_info=True)
        driver.error("Control connection failed to connect, shutting down Cluster:", exc_info=True)
        driver.warning("Host %s has been marked down", "127.0.0.1:9042", exc_info=True)
        logging.getLogger("another").warning("failed", exc_info=True)
    down, failed = written()
    expected = "Host 127.0.0.1:9042 has been marked down ConnectionRefusedError: [Errno 111] Connection refused"
    assert (down["event"], "exception" in down) == (expected, False)
    assert "Traceback" in failed["exception"]


def test_a_flood_is_cut(written: Written) -> None:
    structlog.get_logger().info("x", text="y" * 10_000)
    (event,) = written()
    assert event["text"] == "y" * 8192 + "… (10000 characters)"


@pytest.mark.parametrize("log_format", ["console", "auto"])
def test_console(log_format: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure(log_format, "info", stream)
    try:
        raise ValueError(SECRET_TEXT[:4])
    except ValueError:
        structlog.get_logger().exception("something", port=8480, body=SECRET_TEXT)
    assert "something" in stream.getvalue()
    assert "8480" in stream.getvalue()
    assert "ValueError: meet" in stream.getvalue()
    assert SECRET_TEXT not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_auto_is_json_without_a_terminal() -> None:
    stream = io.StringIO()
    logs.configure("auto", "error", stream)
    log = structlog.get_logger()
    log.warning("not shown")
    log.error("shown")
    assert json.loads(stream.getvalue())["event"] == "shown"


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
nested = st.recursive(
    plain
    | st.just(SECRET_TEXT).map(str.encode)
    | st.builds(Send, st.just(1), st.just("c"), st.just("m"), st.just(SECRET_TEXT)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "my_token"]), inner, max_size=3)
        | st.fixed_dictionaries({"body": st.just(SECRET_TEXT)})
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["a", "user", "x_secret"]), nested, max_size=3))
def test_nothing_forbidden_passes_in_any_shape(event: dict[str, Any]) -> None:
    clean = logs.withhold(None, "info", {"event": "x", **event})
    text = json.dumps(clean)
    assert SECRET_TEXT not in text
    assert '"x_secret":' not in text
    assert '"my_token":' not in text


class FullDisk(io.StringIO):
    """Takes nothing for a while."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    stream = FullDisk()
    logs.configure("json", "info", stream)
    log = structlog.get_logger()
    stream.full = True
    log.error("lost")
    logging.getLogger("library").warning("lost, too")
    stream.full = False
    log.info("shown")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["shown"]
    assert capsys.readouterr().err == ""
