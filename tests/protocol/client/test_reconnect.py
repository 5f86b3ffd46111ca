import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from msgspec import Raw
from trio.testing import memory_stream_pair

from protocol.client import (
    ClientClosed,
    Closed,
    Connecting,
    Online,
    Replaced,
    Resumed,
    StateChanged,
    TokenRefused,
    Waiting,
)
from protocol.client.engine import ABANDONED_S
from protocol.client.wire import Address
from protocol.codec import encode_msgpack
from protocol.errors import CloseCode
from protocol.frames import EntryPush, GoAway, History, HistoryPage, Ping, Sync, SyncedConversation, SyncPage
from protocol.limits import SERVER_FRAME_BYTES_MAX
from tests.fakes.node import FakeConnection, FakeNode
from tests.fakes.waiting import bodies, next_of

REFUSED = ConnectionRefusedError(111, "Connection refused")


async def state(events, kind):
    while not isinstance(found := (await next_of(events, StateChanged)).state, kind):
        pass
    return found


async def test_the_states_of_a_lost_connection(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        assert await state(events, Online) == Online("alice", client.device, "fake")
        node.refusals.append(REFUSED)
        await node.connection.close(1012)
        first = await state(events, Waiting)
        assert "drains or restarts" in first.reason
        assert 0 <= first.delay_s <= 1
        assert await state(events, Connecting) == Connecting(1)
        second = await state(events, Waiting)
        assert second.reason == "cannot reach ws://node:80: connection refused"
        assert 0 <= second.delay_s <= 2
        assert await state(events, Connecting) == Connecting(2)
        await state(events, Online)
    assert client.state == Closed("the client was closed by the program", True)


@pytest.mark.parametrize("code", [c for c in CloseCode if c.reconnect == "backoff"])
async def test_backoff_codes(autojump_clock, node: FakeNode, connected, code: CloseCode) -> None:
    async with connected(rng=random.Random(3)) as client:
        await client.wait_online()
        await node.connection.close(int(code))
        waiting = await state(client.events(), Waiting)
        assert 0 < waiting.delay_s <= 1
        await node.connected(2)


@pytest.mark.parametrize("code", [c for c in CloseCode if c.reconnect == "now"])
async def test_now_codes_reconnect_at_once_but_only_once(
    autojump_clock, node: FakeNode, connected, code: CloseCode
) -> None:
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        await node.connection.close(int(code))
        assert (await state(events, Waiting)).delay_s == 0.0
        await node.connected(2)
        await node.connection.close(int(code))
        assert (await state(events, Waiting)).delay_s > 0.0
        await node.connected(3)
        await trio.sleep(20)  # long enough to count as a success
        await node.connection.close(int(code))
        assert (await state(events, Waiting)).delay_s == 0.0


@pytest.mark.parametrize("code", [c for c in CloseCode if c.reconnect == "new_token"])
async def test_new_token_codes_fetch_another_token(autojump_clock, node: FakeNode, connected, code: CloseCode) -> None:
    tokens = iter(["one", "two"])

    async def provider() -> str:
        return next(tokens)

    async with connected(token=provider) as client:
        await client.wait_online()
        await node.connection.close(int(code))
        await node.connected(2)
    assert [token for token, _, _ in node.attempts] == ["one", "two"]


@pytest.mark.parametrize("given_up", [1, 2, 3])
async def test_attempts_that_were_given_up_and_come_late_are_not_taken_for_another_client(
    autojump_clock, node: FakeNode, connected, given_up: int
) -> None:
    node.mute_handshakes = given_up
    async with connected() as client:
        events = client.events()
        for n in range(given_up):
            await node.connected(n + 1)
            await client.wait_online()
            await node.connection.close(CloseCode.REPLACED)
            while "did not answer within 10 s" in (reason := (await state(events, Waiting)).reason):
                pass
            assert "an attempt of this client that was given up" in reason
        await node.connected(given_up + 1)
        await node.connection.close(CloseCode.REPLACED)
        with pytest.raises(Replaced):  # each attempt arrives once
            await next_of(events, int)


async def test_an_attempt_that_was_given_up_long_ago_does_not_come_any_more(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.mute_handshakes = 1
    async with connected() as client:
        await client.wait_online()
        await trio.sleep(ABANDONED_S)
        await node.connection.close(CloseCode.REPLACED)
        with pytest.raises(Replaced):
            await next_of(client.events(), int)


@pytest.mark.parametrize("code", [c for c in CloseCode if c.reconnect == "never"])
async def test_never_codes_end_the_client_with_a_clear_error(
    autojump_clock, node: FakeNode, connected, code: CloseCode
) -> None:
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        await node.connection.close(int(code))
        with pytest.raises(ClientClosed, match=code.meaning[:20]) as closed:
            await next_of(events, int)
        assert closed.value.code == code
        assert isinstance(closed.value, Replaced) == (code == CloseCode.REPLACED)
        with pytest.raises(ClientClosed):
            await client.send("c", "hello")
    assert len(node.attempts) == 1


async def test_a_token_refused_twice_is_final(autojump_clock, node: FakeNode, connected) -> None:
    node.refusals.extend([(401, [], b"the token has expired")] * 5)
    async with connected() as client:
        with pytest.raises(TokenRefused, match="HTTP 401: the token has expired, and there is no other token"):
            await client.wait_online()
    assert len(node.attempts) == 1


async def test_a_refused_token_is_replaced_by_a_new_one(autojump_clock, node: FakeNode, connected) -> None:
    tokens = iter(["old", "new"])

    async def provider() -> str:
        return next(tokens)

    node.refusals.append((401, [], b"the token has expired"))
    async with connected(token=provider) as client:
        await client.wait_online()
    assert [token for token, _, _ in node.attempts] == ["old", "new"]


async def test_a_token_provider_without_network_is_asked_again(autojump_clock, node: FakeNode, connected) -> None:
    answers = iter([OSError("no route"), "token"])

    async def provider() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async with connected(token=provider) as client:
        assert "no route" in (await state(client.events(), Waiting)).reason
        await client.wait_online()


async def test_a_faulty_token_provider_ends_the_client(autojump_clock, node: FakeNode, connected) -> None:
    async def provider() -> str:
        raise KeyError("oops")

    async with connected(token=provider) as client:
        with pytest.raises(ClientClosed, match="token provider failed: KeyError"):
            await client.wait_online()


async def test_retry_after_is_obeyed(autojump_clock, node: FakeNode, connected) -> None:
    node.refusals.append((503, [(b"Retry-After", b"12")], b"full"))
    async with connected() as client:
        waiting = await state(client.events(), Waiting)
        assert 12 <= waiting.delay_s <= 13
        assert waiting.reason == "the node answered HTTP 503: full"
        await client.wait_online()
    assert node.attempts[1][2] - node.attempts[0][2] >= 12


async def test_a_404_is_final_at_first_but_not_for_a_client_that_was_online(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.refusals.append((404, [], b"no such page"))
    async with connected() as client:
        with pytest.raises(ClientClosed, match="HTTP 404: no such page"):
            await client.wait_online()
    node.refusals.extend([None, (404, [], b"")])
    async with connected() as client:
        await client.wait_online()
        await node.connection.close(1012)
        await node.connected(2)


async def test_go_away_tells_how_long_to_stay_away(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        await node.connection.put(GoAway(9000))
        await node.connection.close(1012)
        assert 8.9 <= (await state(events, Waiting)).delay_s <= 10
        await node.connected(2)


async def test_silence_beyond_the_idle_timeout_means_lost(autojump_clock, node: FakeNode, connected) -> None:
    node.idle_timeout_s = 20.0
    node.heartbeat_interval_s = 50.0
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        start = trio.current_time()
        assert (await state(events, Waiting)).reason == "nothing was heard from the node for 20 s"
        assert trio.current_time() - start < 23
        await node.connected(2)


async def test_a_heartbeat_without_an_answer_for_an_interval_means_lost(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def silent(connection: FakeConnection, command: Ping) -> bool:
        return True

    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        node.scripts[Ping] = silent
        start = trio.current_time()
        assert (await state(events, Waiting)).reason == "nothing was heard from the node for 60 s"
        assert trio.current_time() - start == pytest.approx(60)


async def test_a_connection_cut_without_a_word(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await trio.aclose_forcefully(node.streams[-1])
        assert (await state(events, Waiting)).reason == "the connection broke off"
        await node.connected(2)


class Unending(trio.abc.Stream):
    """A stream whose other end never closes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes)) or await trio.sleep_forever()

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.closed = True
        await self.stream.aclose()


def unending(node: FakeNode, streams: list[Unending]) -> Callable[[Address], Awaitable[Unending]]:
    """Opens such streams to the node and notes them."""

    async def opener(address: Address) -> Unending:
        streams.append(Unending(await node.opener(address)))
        return streams[-1]

    return opener


@pytest.mark.parametrize("ended_by", ["node", "client"])
async def test_every_stream_is_closed_even_if_the_node_keeps_its_end_open(
    autojump_clock, node: FakeNode, connected, ended_by: str
) -> None:
    streams: list[Unending] = []
    opener = unending(node, streams)
    async with connected(opener=opener) as client:
        await client.wait_online()
        if ended_by == "node":
            await node.connection.close(1012)
            await node.connected(2)
            assert streams[0].closed
    assert all(stream.closed for stream in streams)


async def test_refused_handshakes_close_their_streams(autojump_clock, node: FakeNode, connected) -> None:
    streams: list[Unending] = []
    opener = unending(node, streams)
    node.refusals.extend([(503, [], b"full")] * 3)
    async with connected(opener=opener) as client:
        await client.wait_online()
        assert [stream.closed for stream in streams] == [True, True, True, False]


async def test_a_connection_cut_during_the_handshake(autojump_clock, node: FakeNode, connected) -> None:
    node.cut_handshakes = 1
    async with connected() as client:
        start = trio.current_time()
        waiting = await state(client.events(), Waiting)
        assert waiting.reason == "the connection broke off before the node answered"
        assert trio.current_time() == start
        await client.wait_online()


async def test_a_node_that_never_answers(autojump_clock, node: FakeNode, connected) -> None:
    node.mute_handshakes = 1
    async with connected() as client:
        start = trio.current_time()
        assert (await state(client.events(), Waiting)).reason == "ws://node:80 did not answer within 10 s"
        assert trio.current_time() - start == pytest.approx(10)
        await client.wait_online()


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",  # an alert of TLS
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: no\r\nSec-WebSocket-Protocol: caf\xe9\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_that_of_a_websocket_server(
    autojump_clock, node: FakeNode, connected, answer: bytes
) -> None:
    strangers: list[trio.abc.Stream] = []

    async def opener(address: Address) -> trio.abc.HalfCloseableStream:
        if strangers:
            return await node.opener(address)
        ours, stranger = memory_stream_pair()
        strangers.append(stranger)
        await stranger.send_all(answer)
        return ours

    async with connected(opener=opener) as client:
        waiting = await state(client.events(), Waiting)
        assert waiting.reason == (
            "ws://node:80 does not answer as a WebSocket server does: is the port right, or is wss:// meant?"
        )
        await client.wait_online()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
async def test_a_welcome_that_nobody_can_live_by(autojump_clock, node: FakeNode, connected, seconds: float) -> None:
    node.heartbeat_interval_s = seconds
    async with connected() as client:
        waiting = await state(client.events(), Waiting)
        assert waiting.reason == "ws://node:80 sent a welcome without a usable heartbeat or idle time"
        node.heartbeat_interval_s = 30.0
        await client.wait_online()


@pytest.mark.parametrize(
    "frame",
    [
        EntryPush("c", Raw(encode_msgpack(None))),
        EntryPush("c", Raw(encode_msgpack([1, "no kind"]))),
        EntryPush("c", Raw(encode_msgpack([1, 1, 0, "bob", "m", b"no text"]))),
    ],
)
async def test_a_pushed_entry_that_is_none(autojump_clock, node: FakeNode, connected, frame: EntryPush) -> None:
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        await node.connection.put(frame)
        assert "no entry" in (await state(events, Waiting)).reason
        await node.connected(2)


async def test_an_entry_of_a_page_that_is_none(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "before")
    faults = 2

    async def fault(connection: FakeConnection, command: Sync | History) -> bool:
        nonlocal faults
        if not faults:
            return False
        faults -= 1
        if isinstance(command, Sync):
            synced = SyncedConversation("c", 3, 0, [Raw(encode_msgpack([2]))])
            await connection.put(SyncPage(command.id, [synced], True, True))
        else:
            await connection.put(HistoryPage(command.id, "c", [Raw(encode_msgpack([2]))], 3, False))
        return True

    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        node.scripts[Sync] = node.scripts[History] = fault
        node.append("c", "lost")
        await node.say("c", "behind it")
        assert "no entry" in (await state(events, Waiting)).reason
        assert "no entry" in (await state(events, Waiting)).reason
        assert await bodies(events, 2) == ["lost", "behind it"]


async def test_something_that_is_no_frame(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await client.wait_online()
        await node.connection.websocket.send_message(b"\xff garbage")
        assert "no frame" in (await state(events, Waiting)).reason
        await node.connected(2)


async def test_a_frame_larger_than_a_node_may_send(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.websocket.send_message(bytes(SERVER_FRAME_BYTES_MAX + 1))
        assert "the node sent more than 1,048,576 bytes at once" in (await state(events, Waiting)).reason
        await node.connected(2)


async def test_frames_of_a_newer_version_are_ignored(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        await client.wait_online()
        await node.connection.websocket.send_message(b"\x92\x7f\x01")  # tag 127
        assert (await client.send("c", "hello")).seq == 1
    assert len(node.connections) == 1


async def test_another_user_s_token_ends_the_client(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        await client.wait_online()
        node.user = "mallory"
        await node.connection.close(1012)
        with pytest.raises(ClientClosed, match="the token is mallory's, but this client and its state are alice's"):
            await next_of(client.events(), int)
