"""What comes before a connection, and what the node makes of it."""

import os
import time
from contextlib import AsyncExitStack, suppress

import jwt
import pytest
import trio

from bench.processes import NodeProcess
from protocol import limits
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, ErrorReply, Ping, Pong, Welcome
from tests.process.wire import ANSWER_TIMEOUT_S, ask, connect_tcp, connected, read_http, upgrade_request, upgraded

pytestmark = pytest.mark.process

SLOW_SOCKETS = 500


async def _alive(node: NodeProcess) -> None:
    async with connected(node, "honest") as wire:
        assert await wire.ask(Ping(), Pong)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n",
        b"\x00" * 64 + b"\r\n\r\n",
        b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n Folded: y\r\n\r\n",
        b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\xff\xfe" * 100 + b"\r\n\r\n",
    ],
    ids=["tls", "short-line", "bare-line-feeds", "zeros", "folded", "no-colon", "http2", "latin"],
)
async def test_garbage_before_the_upgrade_gets_an_error_and_an_end(node: NodeProcess, garbage: bytes) -> None:
    answer = await ask(node, garbage)
    assert answer.status in (400, 505)
    assert answer.rest.strip()
    await _alive(node)


async def test_random_bytes_get_an_error_or_a_deadline(node: NodeProcess) -> None:
    seed = os.urandom(2048).replace(b"\r\n\r\n", b"")
    answer = await ask(node, seed + b"\r\n\r\n")
    assert answer.status in (400, 431), seed.hex()
    await _alive(node)


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426, "13"),
        ({"Sec-WebSocket-Version": None}, 426, "13"),
        ({"Sec-WebSocket-Key": None}, 400, "16 bytes"),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400, "16 bytes"),
        ({"Sec-WebSocket-Key": "not base64 at all!!"}, 400, "16 bytes"),
        ({"Sec-WebSocket-Protocol": None}, 400, "tidegate.v1"),
        ({"Sec-WebSocket-Protocol": "chat, mqtt"}, 400, "tidegate.v1"),
        ({"Connection": "keep-alive"}, 400, "Upgrade"),
        ({"Origin": "https://evil.example"}, 403, "allowed_origins"),
        ({"X-Long": "x" * 20_000}, 431, "16384"),
        ({"Authorization": "Basic YTpi"}, 401, "Bearer"),
        ({"Authorization": "Bearer"}, 401, "Bearer"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
async def test_an_upgrade_that_is_not_right_is_told_why(
    node: NodeProcess, headers: dict[str, str | None], status: int, said: str
) -> None:
    answer = await ask(node, upgrade_request(headers))
    assert answer.status == status
    assert said in answer.rest.decode()
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_upgrade_by_another_method_or_at_another_place_is_refused(node: NodeProcess) -> None:
    answer = await ask(node, upgrade_request(method="POST"))
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    answer = await ask(node, upgrade_request(target="/v2/connect"))
    assert answer.status == 404
    assert "/v1/connect" in answer.rest.decode()


async def test_a_token_in_the_url_is_refused(node: NodeProcess) -> None:
    token = node.token("alice")
    answer = await ask(node, upgrade_request(target=f"/v1/connect?token={token}"))
    assert answer.status == 400
    assert "Authorization" in answer.rest.decode()
    assert token not in answer.rest.decode()


async def test_frames_sent_before_the_answer_are_refused(node: NodeProcess) -> None:
    answer = await ask(node, upgrade_request() + b"\x82\x80\x00\x00\x00\x00")
    assert answer.status == 400
    assert "wait for the answer" in answer.rest.decode()


# --- tokens -----------------------------------------------------------------------------------------------------------


def _bad_tokens(node: NodeProcess) -> dict[str, str]:
    now = int(time.time())
    good = {"sub": "alice", "aud": "tidegate", "exp": now + 600}
    secret = node.secret

    def sign(claims: dict[str, object], key: str = secret, algorithm: str = "HS256") -> str:
        return jwt.encode(claims, key, algorithm=algorithm)

    whole = sign(good)
    return {
        "expired": sign({**good, "exp": now - limits.TOKEN_LEEWAY_S - 10}),
        "not yet valid": sign({**good, "nbf": now + limits.TOKEN_LEEWAY_S + 60}),
        "wrong audience": sign({**good, "aud": "somebody-else"}),
        "no audience": sign({"sub": "alice", "exp": now + 600}),
        "other algorithm": sign(good, algorithm="HS512"),
        "no algorithm": jwt.encode(good, "", algorithm="none"),
        "wrong signature": sign(good, key="another secret that is long enough for this"),
        "cut signature": whole[:-4],
        "no exp": sign({"sub": "alice", "aud": "tidegate"}),
        "no sub": sign({"aud": "tidegate", "exp": now + 600}),
        "empty sub": sign({**good, "sub": ""}),
        "long sub": sign({**good, "sub": "x" * (limits.USER_ID_CHARS_MAX + 1)}),
        "exp of a wrong type": sign({**good, "exp": None}),
        "not a token": "abc",
        "three empty parts": "..",
    }


async def test_every_kind_of_bad_token_is_refused_in_the_header(node: NodeProcess) -> None:
    for kind, token in _bad_tokens(node).items():
        answer = await ask(node, upgrade_request({"Authorization": f"Bearer {token}"}))
        assert answer.status == 401, kind
        assert answer.headers["www-authenticate"].startswith("Bearer"), kind
        assert len(answer.rest) > 20, kind
        assert len(token) < 10 or token not in answer.rest.decode(), kind


async def test_every_kind_of_bad_token_is_refused_in_the_first_frame(node: NodeProcess) -> None:
    for kind, token in _bad_tokens(node).items():
        async with upgraded(node) as wire:
            reply = await wire.ask(Authenticate(0, token), ErrorReply)
            assert reply.code == ErrorCode.TOKEN_REFUSED, kind
            assert (await wire.closed()).code == CloseCode.TOKEN_REFUSED, kind


async def test_a_good_token_in_the_first_frame_is_welcome_and_a_leeway_is_given(node: NodeProcess) -> None:
    async with upgraded(node) as wire:
        await wire.send(Authenticate(1, node.token("alice", ttl_s=-limits.TOKEN_LEEWAY_S + 15), "phone"))
        welcome = await wire.receive()
        assert isinstance(welcome, Welcome)
        assert (welcome.user, welcome.device) == ("alice", "phone")


async def test_a_refresh_with_a_bad_token_or_anothers_leaves_the_connection_as_it_is(node: NodeProcess) -> None:
    async with connected(node, "alice") as wire:
        for token in (node.token("bob"), "abc"):
            assert (await wire.ask(Authenticate(0, token), ErrorReply)).code == ErrorCode.TOKEN_REFUSED
        assert await wire.ask(Ping(), Pong)


async def test_the_first_frame_has_to_be_authenticate(node: NodeProcess) -> None:
    async with upgraded(node) as wire:
        assert (await wire.ask(Ping(), ErrorReply)).code == ErrorCode.NOT_AUTHENTICATED
        assert (await wire.closed()).code == CloseCode.TOKEN_REFUSED


async def test_who_does_not_authenticate_in_time_is_closed(node: NodeProcess) -> None:
    async with upgraded(node) as wire:
        assert (await wire.closed()).code == CloseCode.AUTHENTICATE_TIMEOUT


# --- slowness ---------------------------------------------------------------------------------------------------------


async def test_500_slow_handshakes_harm_no_honest_client_and_are_cut(node: NodeProcess) -> None:
    """Heads that come byte by byte and never end, while honest clients come and go between the bytes."""
    request = upgrade_request()
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(await connect_tcp(node)) for _ in range(SLOW_SOCKETS)]
        for place in range(8):
            for stream in slow:
                with suppress(trio.BrokenResourceError):  # cut already, on a machine that is slower than their deadline
                    await stream.send_all(request[place : place + 1])
            await _alive(node)
        # They are all still in their handshake, or were cut by their deadline; nobody else was kept waiting.
        answers = [await read_http(stream, whole=True) for stream in slow]
    assert {answer.status for answer in answers} == {408}
    await _alive(node)


async def test_a_handshake_in_pieces_succeeds(node: NodeProcess) -> None:
    request = upgrade_request({"Authorization": f"Bearer {node.token('alice')}"})
    async with await connect_tcp(node) as stream:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            for place in range(0, len(request), 40):
                await stream.send_all(request[place : place + 40])
                await trio.lowlevel.checkpoint()
        assert (await read_http(stream)).status == 101
