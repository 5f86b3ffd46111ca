"""``tidegate chat`` against a node in memory: scripts, and what cannot be."""

import io
import json
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from click.testing import CliRunner

from gateway.auth import Verifier, development_secret
from gateway.cli.chat import command
from gateway.cli.chat_script import LINE_CHARS_MAX, Script
from gateway.cli.chat_session import Goal, open_chat, plainly
from gateway.cli.errors import CliError
from gateway.config import Settings
from protocol.client import connect
from protocol.errors import ErrorCode
from protocol.frames import EntryKind, ErrorReply, ReceiptPush, Send, SendAck
from tests.fakes.node import FakeNode


async def chat(node: FakeNode, goal: Goal, text: str, monkeypatch, *, as_json: bool = False) -> None:
    """Run the chat of a script that writes ``text``."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))

    async def work() -> None:
        async with connect("ws://node", token="t", opener=node.opener, rng=random.Random(1)) as client:
            await Script(await open_chat(client, goal), json=as_json).run()

    await plainly(work)


async def test_each_line_is_a_message_and_all_are_acknowledged(node: FakeNode, monkeypatch, capsys) -> None:
    await chat(node, Goal("alice", ["bob"], ""), "one\n\ntwo\r\n  three\n", monkeypatch)
    said = [entry.body for entry in node.logs["d-bob"] if entry.kind == EntryKind.MESSAGE]
    assert said == ["one", "two", "  three"]
    assert capsys.readouterr().out == ""


async def test_json_prints_an_object_an_event(node: FakeNode, monkeypatch, capsys) -> None:
    node.append("g", "Team", kind=EntryKind.CREATED, users=["alice", "bob"])
    node.append("g", "before")
    await chat(node, Goal("alice", [], "g"), "hello\n", monkeypatch, as_json=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "history"
    assert [entry["event"] for entry in events[0]["entries"]] == ["created", "message"]
    (sent,) = [event for event in events if event["event"] == "sent"]
    assert (sent["conversation_id"], sent["seq"]) == ("g", 3)


async def test_json_prints_entries_in_the_order_of_their_seq_and_receipts_behind_them(
    node: FakeNode, monkeypatch, capsys
) -> None:
    """Whatever the node tells together, and whichever task of the client runs first."""

    async def answer_and_go_on(connection, send: Send) -> bool:
        name = send.conversation_id
        before, (own, _), behind = node.append(name, "b"), node.store_send(send), node.append(name, "a")
        await connection.push_entry(name, behind)
        await connection.put(SendAck(send.id, own.seq, own.time_us))
        await connection.push_entry(name, before)
        await connection.put(ReceiptPush(name, "bob", own.seq, own.seq))
        return True

    node.scripts[Send] = answer_and_go_on
    lines = 20
    await chat(node, Goal("alice", ["bob"], ""), "hello\n" * lines, monkeypatch, as_json=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    seqs = [event["seq"] for event in events if event["event"] in {"message", "sent"}]
    assert seqs == sorted(set(seqs))
    assert len([event for event in events if event["event"] == "sent"]) == lines
    shown = 1
    for event in events:
        shown = event.get("seq", shown)
        assert event.get("read_seq", 0) <= shown, f"{event} stands before the entry"


async def test_a_refused_line_is_told_and_the_others_are_sent(node: FakeNode, monkeypatch, capsys) -> None:
    text = "one\n" + "x" * 5000 + "\nthree\n"
    with pytest.raises(CliError, match="1 of the lines could not be sent"):
        await chat(node, Goal("alice", ["bob"], ""), text, monkeypatch)
    assert [entry.body for entry in node.logs["d-bob"][1:]] == ["one", "three"]
    assert "line 2 was not sent: TOO_LONG: the body has 5,000 characters" in capsys.readouterr().err


async def test_no_part_of_a_line_that_is_too_long_is_sent(node: FakeNode, monkeypatch, capsys) -> None:
    text = "one\n" + "x" * (2 * LINE_CHARS_MAX + 1000) + "\nthree\n" + "y" * (LINE_CHARS_MAX + 1000)
    with pytest.raises(CliError, match="2 of the lines could not be sent"):
        await chat(node, Goal("alice", ["bob"], ""), text, monkeypatch)
    assert [entry.body for entry in node.logs["d-bob"][1:]] == ["one", "three"]
    told = capsys.readouterr().err
    assert "line 2 was not sent" in told
    assert "line 4 was not sent" in told


async def test_a_terminal_is_told_nothing_that_it_obeys(node: FakeNode, monkeypatch, capsys) -> None:
    async def refuse(connection, send) -> bool:
        await connection.put(ErrorReply(send.id, ErrorCode.NOT_FOUND, "no\x1b[2J such\nconversation"))
        return True

    node.append("g", "Team", kind=EntryKind.CREATED, users=["alice", "bob"])
    node.append("g", "\x9b2J\u202e")
    node.scripts[Send] = refuse
    with pytest.raises(CliError):
        await chat(node, Goal("alice", [], "g"), "one\n", monkeypatch, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[0])["entries"][1]["body"] == "\x9b2J\u202e"
    assert captured.out.replace("\n", "").isprintable()
    assert "NOT_FOUND: no\ufffd[2J such conversation\n" in captured.err
    node.refusals.append((404, [], b"no\x1b[2J such page"))
    with pytest.raises(CliError, match="HTTP 404: no\ufffd"):
        await chat(node, Goal("alice", ["bob"], ""), "", monkeypatch)


async def test_a_line_that_is_not_utf8_is_told_and_the_others_are_sent(node: FakeNode, monkeypatch, capsys) -> None:
    text = "one\n" + b"caf\xe9\n".decode(errors="surrogateescape") + "three\n"
    with pytest.raises(CliError, match="1 of the lines could not be sent"):
        await chat(node, Goal("alice", ["bob"], ""), text, monkeypatch, as_json=True)
    assert [entry.body for entry in node.logs["d-bob"][1:]] == ["one", "three"]
    captured = capsys.readouterr()
    assert "line 2 was not sent: BAD_REQUEST: U+DCE9, half of a surrogate pair" in captured.err
    (not_sent,) = [event for event in map(json.loads, captured.out.splitlines()) if event["event"] == "not_sent"]
    assert not_sent["body"] == "caf?"


async def test_a_refusal_of_the_node_is_told_too(node: FakeNode, monkeypatch, capsys) -> None:
    async def refuse(connection, send) -> bool:
        await connection.put(ErrorReply(send.id, ErrorCode.NOT_FOUND, "no such conversation"))
        return True

    node.scripts[Send] = refuse
    with pytest.raises(CliError):
        await chat(node, Goal("alice", ["bob"], ""), "one\n", monkeypatch, as_json=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["reason"] for event in events if event["event"] == "not_sent"] == ["NOT_FOUND: no such conversation"]


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (Goal("mallory", ["bob"], ""), "the token is for alice, not for mallory"),
        (Goal("alice", [], "nope"), "alice is in no group 'nope'; add --to USER"),
        (Goal("alice", ["bob", "carol"], ""), "several --to need --group"),
    ],
)
async def test_what_cannot_be_is_one_clear_line(node: FakeNode, monkeypatch, goal: Goal, message: str) -> None:
    with pytest.raises(CliError, match=message):
        await chat(node, goal, "", monkeypatch)


async def test_a_node_that_is_not_there(autojump_clock, node: FakeNode, monkeypatch) -> None:
    node.refusals.extend([ConnectionRefusedError(111, "")] * 20)
    with pytest.raises(CliError, match="connection refused; is the node running") as error:
        await chat(node, Goal("alice", ["bob"], ""), "", monkeypatch)
    assert error.value.exit_code == 69


async def test_a_refused_token(node: FakeNode, monkeypatch) -> None:
    node.refusals.append((401, [], b"the token has expired"))
    with pytest.raises(CliError, match=r"the token has expired.*pass --token"):
        await chat(node, Goal("alice", ["bob"], ""), "", monkeypatch)


async def test_a_group_is_created_from_its_members(node: FakeNode, monkeypatch) -> None:
    await chat(node, Goal("alice", ["bob", "carol"], "Team"), "hello\n", monkeypatch)
    ((created, message),) = node.logs.values()
    assert (created.body, created.users, message.body) == ("Team", ["alice", "bob", "carol"], "hello")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "bob"], 2, "--as"),
        (["--as", "alice"], 2, "with whom?"),
        (["--as", "x" * 129, "--to", "bob"], 2, "1 to 128 characters"),
        (["--as", "alice", "--to", "bob", "--data-dir", "/nonexistent"], 1, "pass a token with --token"),
        (["--as", "alice", "--to", "bob", "--config", "/nonexistent"], 2, "cannot be read"),
        (["--as", "alice", "--to", "bob", "--token", "t", "--url", "node"], 2, "ws://HOST:PORT"),
    ],
)
def test_usage(arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == code
    assert message in result.output


def test_a_token_is_made_from_the_settings_as_tidegate_token_makes_it(tmp_path, monkeypatch) -> None:
    """What the nodes of a cluster share is a secret; the data directory at hand may be that of another node."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_AUTH_SECRET", "x" * 32)
    (tmp_path / "tidegate.toml").write_text('auth_audience = "a"\nauth_issuer = "i"\n')
    development_secret(tmp_path / "data")
    made: list[str] = []
    really_run = trio.run

    def run(_work: object, _goal: Goal, _url: str, provider: Callable[[], Awaitable[str]], *_: object) -> None:
        made.append(really_run(provider))

    monkeypatch.setattr("gateway.cli.chat.trio.run", run)
    result = CliRunner().invoke(command, ["--as", "alice", "--to", "bob"])
    assert result.exit_code == 0, result.output
    node_settings = Settings(auth_secret="x" * 32, auth_audience="a", auth_issuer="i")
    assert Verifier.from_settings(node_settings).verify(made[0]).user == "alice"


def test_the_examples_in_the_help_stand_one_a_line() -> None:
    lines = CliRunner().invoke(command, ["--help"]).output.splitlines()
    assert "  tidegate chat --as alice --to bob" in lines
