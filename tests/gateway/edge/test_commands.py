"""From a frame to whoever answers it."""

import time

import jwt
import pytest
import trio
from structlog.testing import capture_logs

from gateway.auth import Verifier
from gateway.broker import Delivery
from gateway.config import Settings
from gateway.edge.admission import Admission
from gateway.edge.commands import Commands
from gateway.edge.hub import Caller
from gateway.edge.keepalive import Keepalive
from gateway.edge.presence import Presences
from gateway.edge.refreshes import Refreshes
from gateway.edge.sessions import Sessions
from protocol import frames
from protocol.codec import encode_json, encode_msgpack
from protocol.errors import CloseCode, ErrorCode
from protocol.websocket import Opcode

SECRET = "a secret of more than thirty-two bytes, for tests"


class Recorder:
    """Stands in for owner and catch-up."""

    def __init__(self):
        self.submitted = []

    def submit(self, origin, command):
        self.submitted.append((origin, command))


class Desk:
    def __init__(self, edge, **settings):
        self.edge = edge
        self.settings = Settings(auth_secret=SECRET, **settings)
        self.owner, self.catchup = Recorder(), Recorder()
        verifier = Verifier.from_settings(self.settings)
        self.keepalive = Keepalive(self.settings, edge.table, edge.writer)
        sessions = Sessions(self.settings, edge.table, edge.writer, edge.hub, edge.parking, "node-1")
        self.refreshes = Refreshes(verifier, sessions, self.keepalive, edge.hub)
        self.presences = Presences(self.settings, None, edge.hub)
        self.commands = Commands(
            edge.writer,
            edge.hub,
            Admission(self.settings, edge.table),
            owner=self.owner,
            catchup=self.catchup,
            presences=self.presences,
            refreshes=self.refreshes,
        )

    def give(self, peer, frame):
        self.commands.handle(peer.connection, encode_msgpack(frame))


def token(user, lifetime_s=3600):
    return jwt.encode({"sub": user, "exp": time.time() + lifetime_s, "aud": "tidegate"}, SECRET, "HS256")


def test_every_command_has_a_handler(edge):
    assert set(Desk(edge).commands.handlers) == set(frames.Command.__args__)


def test_ping_is_answered_at_once_in_the_peers_subprotocol(edge):
    desk, peer, browser = Desk(edge), edge.connect("a"), edge.connect("b", json=True)
    desk.give(peer, frames.Ping(7))
    desk.commands.handle(browser.connection, encode_json(frames.Ping(8)))
    assert peer.frames() == [frames.Pong(7)]
    assert browser.ws_frames() == [(Opcode.TEXT, b"[42,8]")]


def test_what_all_members_of_a_channel_say_of_each_entry_bothers_no_owner(edge):
    desk, peer = Desk(edge), edge.connect("a")
    channel, group = "c" + "n" * 24, "g" + "n" * 24
    for request_id, conversation_id in ((1, channel), (0, channel), (2, group)):
        desk.give(peer, frames.MarkReceipt(request_id, conversation_id, 5))
        desk.give(peer, frames.Typing(request_id, conversation_id))
    desk.give(peer, frames.MarkReceipt(3, channel, 5, 5))
    assert peer.frames() == [frames.Ok(1), frames.Ok(1)]
    assert [command for _origin, command in desk.owner.submitted] == [
        frames.MarkReceipt(2, group, 5),
        frames.Typing(2, group),
        frames.MarkReceipt(3, channel, 5, 5),
    ]


def test_commands_go_to_the_owner_or_to_catch_up_in_order(edge):
    desk, peer = Desk(edge), edge.connect("a")
    sent = [frames.Send(1, "c", "m1", "hi"), frames.History(2, "c"), frames.Typing(0, "c")]
    asked = [frames.Sync(3), frames.ListConversations(4)]
    for frame in (*sent, *asked):
        desk.give(peer, frame)
    assert desk.owner.submitted == [(peer.connection, frame) for frame in sent]
    assert desk.catchup.submitted == [(peer.connection, frame) for frame in asked]


def test_callers_inside_the_process_use_the_same_table(edge):
    desk, caller = Desk(edge), Caller("a", print)
    desk.commands.submit(caller, frames.GetConversation(1, "c"))
    assert desk.owner.submitted == [(caller, frames.GetConversation(1, "c"))]


@pytest.mark.parametrize(
    ("payload", "request_id", "code", "words"),
    [
        (
            b"\x92\x26\x05",
            5,
            ErrorCode.UNKNOWN_COMMAND,
            "tag 38 is no command of this node: use 1 to 15, or do without",
        ),
        (b"\x92\x03\x05", 5, ErrorCode.BAD_REQUEST, "Expected `conversation_id` of Send, got the end"),
        (b"\x95\x03\x05\xa1c\xa1m\x01", 5, ErrorCode.BAD_REQUEST, "Expected `str`, got `int`"),
        (b"\x95\x03\x05\xa0\xa1m\xa1b", 5, ErrorCode.BAD_REQUEST, "length >= 1"),
        (b"\x92\x02\xff", 0, ErrorCode.BAD_REQUEST, ">= 0"),
        (b"\x92\x2a\x05", 5, ErrorCode.UNKNOWN_COMMAND, "tag 42"),
    ],
    ids=("unknown", "missing", "type", "empty", "negative", "reply"),
)
def test_bad_commands_are_answered_and_the_connection_stays(edge, payload, request_id, code, words):
    desk, peer = Desk(edge), edge.connect("a")
    desk.commands.handle(peer.connection, payload)
    (reply,) = peer.frames()
    assert (reply.id, reply.code) == (request_id, code)
    assert words in reply.message
    assert peer.connection.flags == 0
    assert desk.commands.invalid == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"\x92\x02\x05\x00",
        b"\x91" * 60_000,
        b"\xdd\xff\xff\xff\xff\x02",
        b"\x92\xa1x\x01",
    ],
    ids=("empty", "reserved", "nil", "no tag", "trailing", "deep", "huge", "text tag"),
)
async def test_garbage_closes_the_connection(edge, payload):
    desk, peer = Desk(edge), edge.connect("a")
    desk.commands.handle(peer.connection, payload)
    assert peer.close_code() == CloseCode.BAD_FRAME


def test_a_fault_of_ours_is_logged_with_whose_command_it_was_and_ends_that_connection_only(edge):
    desk, peer, neighbour = Desk(edge), edge.connect("ann"), edge.connect("ben")

    def fail(_origin, _command):
        raise RuntimeError

    desk.commands.handlers[frames.Send] = fail
    fd = peer.connection.fd
    with capture_logs() as lines:
        desk.give(peer, frames.Send(7, "c1", "m1", "a body that nobody may log"))
    (line,) = lines
    assert line["event"] == "command failed"
    assert (line["user"], line["connection"], line["command"], line["request"]) == ("ann", fd, "Send", 7)
    assert line["conversation"] == "c1"
    assert line["exc_info"]
    assert "a body" not in str(line)
    assert peer.close_code() == CloseCode.INTERNAL_ERROR
    desk.give(neighbour, frames.Ping(8))
    assert neighbour.frames() == [frames.Pong(8)]


def test_the_rate_limit_allows_a_burst_then_the_rate(edge):
    desk, peer = Desk(edge, commands_per_s_max=10, commands_burst_max=5), edge.connect("a")
    edge.table.now = 100.0
    for n in range(8):
        desk.give(peer, frames.Ping(n))
    replies = peer.frames()
    assert [type(reply) for reply in replies] == [frames.Pong] * 5 + [frames.ErrorReply] * 3
    assert replies[5].code == ErrorCode.RATE_LIMITED
    wait_ms = replies[5].retry_after_ms
    told = f"more than 10 commands a second, 5 at once; nothing was done: repeat it in {wait_ms} ms"
    assert replies[5].message == told
    assert 0 < replies[5].retry_after_ms <= 101
    edge.table.now += replies[5].retry_after_ms / 1000
    desk.give(peer, frames.Ping(99))
    assert peer.frames()[-1] == frames.Pong(99)


def test_frames_of_bad_form_count_too(edge):
    desk, peer = Desk(edge, commands_per_s_max=10, commands_burst_max=2), edge.connect("a")
    for _ in range(4):
        desk.commands.handle(peer.connection, b"\x92\x26\x05")
    codes = [reply.code for reply in peer.frames()]
    assert codes == [ErrorCode.UNKNOWN_COMMAND] * 2 + [ErrorCode.RATE_LIMITED] * 2


def test_sends_to_a_congested_conversation_are_told_to_wait(edge):
    desk, peer = Desk(edge), edge.connect("a")
    recipients = [f"u{n}" for n in range(100)]
    while not edge.hub.fanout.congested("c"):
        edge.hub.deliver(Delivery("c", recipients, [b"\x90"], [None]))
    desk.give(peer, frames.Send(1, "c", "m1", "hi"))
    desk.give(peer, frames.Send(2, "other", "m2", "hi"))
    (reply,) = peer.frames()
    assert (reply.id, reply.code) == (1, ErrorCode.OVERLOADED)
    assert "64 deliveries of this conversation or 4096 of all" in reply.message
    assert reply.retry_after_ms > 0
    assert reply.message.endswith(f"nothing was stored: repeat it in {reply.retry_after_ms} ms")
    assert [command.id for _, command in desk.owner.submitted] == [2]


def test_one_connections_rate_is_no_business_of_another(edge):
    desk = Desk(edge, commands_per_s_max=10, commands_burst_max=1)
    greedy, modest = edge.connect("a"), edge.connect("b")
    for n in range(50):
        desk.give(greedy, frames.Ping(n))
    desk.give(modest, frames.Ping(1))
    assert modest.frames() == [frames.Pong(1)]


async def test_a_fresh_token_lengthens_the_connections_life(edge, nursery):
    desk = Desk(edge)
    await nursery.start(desk.refreshes.run)
    edge.table.now = trio.current_time()
    peer = edge.connect("alice", ends_s=edge.table.now + 10)
    before = edge.table.ends_s[peer.connection.fd]
    desk.give(peer, frames.Authenticate(1, token("alice")))
    (reply,) = peer.frames()
    assert isinstance(reply, frames.Authenticated)
    assert 3590 < reply.token_expires_in_s <= 3600
    assert edge.table.ends_s[peer.connection.fd] > before + 3000


@pytest.mark.parametrize("bad", ["x.y.z", token("mallory"), token("alice", -100)], ids=("no jwt", "other", "expired"))
async def test_a_bad_fresh_token_is_refused_and_the_old_one_stays(edge, nursery, bad):
    desk = Desk(edge)
    await nursery.start(desk.refreshes.run)
    peer = edge.connect("alice", ends_s=12345)
    desk.give(peer, frames.Authenticate(1, bad))
    (reply,) = peer.frames()
    assert (reply.id, reply.code) == (1, ErrorCode.TOKEN_REFUSED)
    assert edge.table.ends_s[peer.connection.fd] == 12345
    assert peer.connection.flags == 0
