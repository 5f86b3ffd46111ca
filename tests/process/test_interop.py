"""Two clients that were not written here talk to a node: trio-websocket and websockets."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import msgspec
import pytest
import trio
import trio_websocket
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_asyncio

from bench.processes import NodeProcess
from protocol import codec
from protocol.errors import CloseCode
from protocol.frames import (
    SUBPROTOCOL,
    SUBPROTOCOL_JSON,
    Authenticate,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    EntryPush,
    Ping,
    Pong,
    Send,
    SendAck,
    Welcome,
)
from tests.process.wire import ANSWER_TIMEOUT_S

pytestmark = pytest.mark.process

Receive = Callable[[], Awaitable[bytes | str]]
Transmit = Callable[[bytes | str], Awaitable[None]]


async def _chat(node: NodeProcess, send: Transmit, receive: Receive, user: str, *, json: bool, welcomed: bool) -> None:
    """Authenticate if need be, create a conversation with oneself, send to it, read the acknowledgement."""

    async def tell(command: object) -> None:
        await send(codec.encode_json(command).decode() if json else codec.encode_msgpack(command))

    async def hear() -> object:
        data = await receive()
        assert isinstance(data, str) == json
        return codec.decode_server_frame(data.encode() if isinstance(data, str) else data, json=json)

    if not welcomed:
        await tell(Authenticate(1, node.token(user)))
    welcome = await hear()
    assert isinstance(welcome, Welcome)
    assert welcome.user == user
    await tell(CreateConversation(2, ConversationKind.DIRECT, [], uuid4().hex))
    made = await hear()
    assert isinstance(made, ConversationReply)
    for number in range(3, 6):
        await tell(Send(number, made.conversation.conversation_id, uuid4().hex, "\N{WATER WAVE}" * number))
        ack = await hear()
        assert isinstance(ack, SendAck)
        assert (ack.id, ack.seq) == (number, made.conversation.head_seq + number - 2)
    await tell(Ping(9))
    pong = await hear()
    assert isinstance(pong, Pong)


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "first-frame"])
async def test_trio_websocket(node: NodeProcess, json: bool, header: bool) -> None:
    user = f"trio-{json}-{header}"
    subprotocol = SUBPROTOCOL_JSON if json else SUBPROTOCOL
    headers = [(b"Authorization", f"Bearer {node.token(user)}".encode())] if header else []
    with trio.fail_after(ANSWER_TIMEOUT_S):
        async with trio_websocket.open_websocket_url(
            node.ws_url, subprotocols=[subprotocol], extra_headers=headers
        ) as client:
            assert client.subprotocol == subprotocol
            await _chat(node, client.send_message, client.get_message, user, json=json, welcomed=header)
            await client.ping(b"still there?")
    assert client.closed is not None
    assert client.closed.code == CloseCode.NORMAL


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), ANSWER_TIMEOUT_S)

    asyncio.run(bounded())


def _websockets(node: NodeProcess, user: str, *, json: bool = False, header: bool = True) -> connect_asyncio:
    headers = {"Authorization": f"Bearer {node.token(user)}"} if header else {}
    subprotocol = SUBPROTOCOL_JSON if json else SUBPROTOCOL
    return connect_asyncio(
        node.ws_url,
        subprotocols=[websockets.Subprotocol(subprotocol)],
        additional_headers=headers,
        proxy=None,
        open_timeout=ANSWER_TIMEOUT_S,
    )


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "first-frame"])
def test_websockets(node: NodeProcess, json: bool, header: bool) -> None:
    user = f"websockets-{json}-{header}"

    async def main() -> None:
        async with _websockets(node, user, json=json, header=header) as client:
            await _chat(node, client.send, client.recv, user, json=json, welcomed=header)
            await (await client.ping(b"still there?"))
        assert client.close_code == CloseCode.NORMAL

    _run(main)


def test_websockets_sends_fragments_and_large_messages(node: NodeProcess) -> None:
    async def main() -> None:
        async with _websockets(node, "fragments") as client:
            await client.recv()
            data = codec.encode_msgpack(Ping(77))
            await client.send([data[:1], data[1:2], b"", data[2:]])
            assert msgspec.msgpack.decode(await client.recv()) == [42, 77]
            await client.send(codec.encode_msgpack(CreateConversation(1, ConversationKind.DIRECT, [], uuid4().hex)))
            made = codec.decode_server_frame(await client.recv())
            assert isinstance(made, ConversationReply)
            metadata = {f"k{n}": "v" * 512 for n in range(16)}
            body = "\N{WATER WAVE}" * 4000
            large = codec.encode_msgpack(Send(2, made.conversation.conversation_id, uuid4().hex, body, metadata))
            assert len(large) > 20_000
            await client.send([large[n : n + 999] for n in range(0, len(large), 999)])
            assert isinstance(codec.decode_server_frame(await client.recv()), SendAck)

    _run(main)


def test_the_two_clients_meet_across_subprotocols(node: NodeProcess) -> None:
    """What one sends as msgpack, the other gets as JSON."""

    async def main() -> None:
        async with _websockets(node, "meg") as meg, _websockets(node, "jay", json=True) as jay:
            await meg.recv()
            await jay.recv()
            await meg.send(codec.encode_msgpack(CreateConversation(1, ConversationKind.DIRECT, ["jay"], uuid4().hex)))
            made = codec.decode_server_frame(await meg.recv())
            assert isinstance(made, ConversationReply)
            await meg.send(codec.encode_msgpack(Send(2, made.conversation.conversation_id, "m1", "hi \N{WATER WAVE}")))
            first, second = await _json(jay), await _json(jay)
            assert (first[0], first[1]) == (81, made.conversation.conversation_id)
            assert second[2][5] == "hi \N{WATER WAVE}"
            await jay.send(f'[3, 5, "{made.conversation.conversation_id}", "m2", "hello"]')
            assert (await _json(jay))[:3] == [43, 5, 3]
            assert isinstance(codec.decode_server_frame(await meg.recv()), SendAck)
            push = codec.decode_server_frame(await meg.recv())
            assert isinstance(push, EntryPush)
            assert codec.decode_entry(push.entry).body == "hello"

    async def _json(client: ClientConnection) -> list:
        return msgspec.json.decode(await client.recv())

    _run(main)
