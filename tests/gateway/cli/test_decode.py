"""``tidegate decode``: every golden vector in each notation; what cannot be read is one clear line."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.captures import CaptureError, Messages, parse_file, parse_text, read_capture
from gateway.cli.decode import command

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[3] / "protocol" / "vectors.json").read_text())
FRAMES = [vector for vector in VECTORS if "ws" not in vector["decoded"]]
SEND = next(vector["hex"] for vector in VECTORS if vector["name"] == "send")


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(command, arguments, input=stdin)


def shown(*arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
    result = run("--json", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def error_line(result: Result) -> str:
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    return lines[0]


def contains(found: Any, expected: Any) -> bool:
    """Whether ``found`` says at least what ``expected`` does (nils may be left out, names and times be added)."""
    if isinstance(expected, dict):
        return all(contains(found.get(name), part) for name, part in expected.items() if part is not None)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(contains, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["name"])
def test_every_vector_is_readable(vector: dict[str, Any]) -> None:
    expected = dict(vector["decoded"])
    name = expected.pop("frame")
    token = expected.pop("token", "")
    (found,) = shown(vector["hex"])
    assert found["frame"] == name
    assert contains(found["fields"], expected)
    assert not token or token not in json.dumps(found)
    assert run(vector["hex"]).stdout.startswith(name)


@pytest.mark.parametrize(
    "text",
    [
        SEND,
        SEND.upper(),
        "0x" + SEND,
        " ".join(SEND[place : place + 2] for place in range(0, len(SEND), 2)),
        ":".join(SEND[place : place + 2] for place in range(0, len(SEND), 2)),
        base64.b64encode(bytes.fromhex(SEND)).decode(),
        base64.urlsafe_b64encode(bytes.fromhex(SEND)).decode().rstrip("="),
    ],
)
def test_notations(text: str) -> None:
    assert parse_text(text).hex() == SEND


def test_text_output() -> None:
    assert run("82", "83", "37fa213d", "a5f820").stdout == (
        "WebSocket BINARY of a client: 3 bytes, masked\nPing (command)\n  id: 1\n"
    )
    pushed = next(vector["hex"] for vector in VECTORS if vector["name"] == "entry pushed")
    assert '\n    body: "hi"\n    kind_name: "MESSAGE"\n    time: "2026-01-01T00:00:00+00:00"\n' in run(pushed).stdout


def test_file_of_lines_joins_fragments(tmp_path: Path) -> None:
    path = tmp_path / "capture.txt"
    path.write_text("# captured by hand\n\n028237fa213da5f8\n808137fa213d36\n[2,5]\n")
    fragment, message, bare = shown("--file", str(path))
    assert fragment["fields"] == {"fragment": "9202"}
    assert (message["frame"], message["fields"]) == ("Ping", {"id": 1})
    assert (bare["frame"], bare["fields"]) == ("Ping", {"id": 5})


def test_file_of_bytes_in_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "capture.bin"
    path.write_bytes(bytes.fromhex("828337fa213da5f820" + "8203922a01" + "880f0fa0736c6f7720636f6e73756d6572"))
    ping, pong, close = shown("--file", str(path))
    assert (ping["ws"]["from"], ping["frame"]) == ("client", "Ping")
    assert (pong["ws"]["from"], pong["frame"], pong["kind"]) == ("node", "Pong", "reply")
    assert close["fields"]["name"] == "SLOW_CONSUMER"
    assert shown("--file", "-", stdin=path.read_bytes()) == [ping, pong, close]


def test_error_codes_are_named() -> None:
    (found,) = shown("9529070cb1746f6f206d616e7920636f6d6d616e6473cd05dc")
    assert found["fields"]["name"] == "RATE_LIMITED"


@pytest.mark.parametrize(
    ("capture", "code", "part"),
    [
        ("%%", 2, "'%%' is neither hex (pairs of the digits 0-9 and a-f), nor base64 of a frame, nor JSON: give"),
        ("", 2, "nothing to decode"),
        ("92020", 2, "'92020' is neither hex (pairs of the digits 0-9 and a-f)"),
        ("92 02 0g", 2, "'92 02 0g' is neither hex (pairs of the digits 0-9 and a-f), nor base64 of a frame, nor JSON"),
        ("ff", 1, "byte 0xff at offset 0 begins neither an array of msgpack or JSON nor a WebSocket frame"),
        ("8283", 1, "offset 0: the capture ends within a WebSocket frame's header"),
        ("828337fa213da5", 1, "has 3 bytes of payload, but the capture ends 2 bytes too early"),
        ("8203922a01f2", 1, "offset 5: the capture ends within"),
        ("8203922a01f200", 1, "offset 5: byte 0xf2 begins no WebSocket frame"),
        ("827e007d", 1, "frame length 125 in 2 bytes"),
        ("936301", 1, "1 of these cannot be read as a frame"),
        ("930301", 1, "1 of these cannot be read as a frame"),
        ("92c101", 1, "1 of these cannot be read as a frame"),
        ("[3,1", 1, "1 of these cannot be read as a frame"),
        ("808137fa213d36", 1, "1 of these cannot be read as a frame"),
        ("8801ff", 1, "1 of these cannot be read as a frame"),
    ],
)
def test_what_cannot_be_read_is_one_line(capture: str, code: int, part: str) -> None:
    result = run(capture)
    assert result.exit_code == code
    assert part in error_line(result)


def test_problems_are_named_where_they_are() -> None:
    assert "problem: unknown frame: tag 99" in run("93630102").stdout
    assert "problem: Expected `str`, got `int` - at `$[2]`" in run("[13,1,2]").stdout


def test_token_of_a_broken_authenticate_is_not_shown() -> None:
    result = run('[1,-1,"secretsecretsecret"]')
    assert result.exit_code == 1
    assert "secretsecret" not in result.stdout
    assert "18 characters, not shown" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["8203922a01", "--file", "x"]])
def test_exactly_one_source(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "give either a capture" in error_line(result)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.write_bytes(b"")
    bad.write_text("920201\n%%%\n")
    assert "No such file" in error_line(run("--file", str(tmp_path / "missing")))
    assert "the file is empty" in error_line(run("--file", str(empty)))
    empty.write_bytes(b"# nothing yet\n")
    assert "the file is empty" in error_line(run("--file", str(empty)))
    assert "line 2: '%%%' is neither hex" in error_line(run("--file", str(bad)))


@given(
    st.binary(min_size=1, max_size=120), st.sampled_from([b"", b"\x82", b"\x96\x03\x01", b"[3,", b"\x93\x51\xa1d\x98"])
)
def test_any_bytes_are_shown_or_refused(data: bytes, start: bytes) -> None:
    with contextlib.suppress(CaptureError):
        for each in parse_file(start + data):
            messages: Messages = {}
            for found in read_capture(each, messages):
                assert found.frame or found.fields or found.problem
