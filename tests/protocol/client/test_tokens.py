"""Tokens that run out, are refused, or cannot be had: what becomes of the connection and of the client."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from protocol.client import ClientClosed
from protocol.client.tokens import Tokens
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, TokenExpiring
from tests.fakes.node import FakeConnection, FakeNode, Refusals
from tests.fakes.waiting import next_of


def provider_of(*answers: str | Exception) -> Callable[[], Awaitable[str]]:
    """Gives the answers one after the other, and the last one again and again."""
    left = list(answers)

    async def provider() -> str:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return provider


def refreshes(node: FakeNode) -> list[str]:
    return [command.token for command in node.received if isinstance(command, Authenticate)]


async def test_a_provider_that_fails_during_a_connection_ends_the_client_as_at_its_beginning(
    autojump_clock, node: FakeNode, connected
) -> None:
    async with connected(token=provider_of("one", KeyError("oops"))) as client:
        await client.wait_online()
        await node.connection.put(TokenExpiring(60))
        with pytest.raises(ClientClosed, match="token provider failed: KeyError"):
            await next_of(client.events(), int)


async def test_a_provider_without_network_during_a_connection_is_no_end(
    autojump_clock, node: FakeNode, connected
) -> None:
    async with connected(token=provider_of("one", OSError("no route"), "two")) as client:
        await client.wait_online()
        await node.connection.put(TokenExpiring(60))
        await trio.sleep(1)
        await node.connection.close(CloseCode.TOKEN_EXPIRED)
        await node.connected(2)
    assert [token for token, _, _ in node.attempts] == ["one", "two"]


async def test_a_refresh_that_was_put_off_is_repeated(autojump_clock, node: FakeNode, connected) -> None:
    """A node does so while it is upgraded, or while it fetches the key of an issuer."""
    node.scripts[Authenticate] = Refusals((ErrorCode.OVERLOADED, 2000), (ErrorCode.UNAVAILABLE, 2000))
    async with connected(token=provider_of("one", "two")) as client:
        await client.wait_online()
        await node.connection.put(TokenExpiring(60))
        await trio.sleep(50)
    assert refreshes(node) == ["two"] * 3
    assert len(node.connections) == 1


async def test_a_token_that_ran_out_says_nothing_of_the_one_that_came_too_late(
    autojump_clock, node: FakeNode, connected
) -> None:
    """The provider gives the same good token until it runs out, as those do that keep it."""

    async def too_late(connection: FakeConnection, command: Authenticate) -> bool:
        await connection.close(CloseCode.TOKEN_EXPIRED)
        return True

    node.scripts[Authenticate] = too_late
    async with connected(token=provider_of("one", "two")) as client:
        await client.wait_online()
        await node.connection.put(TokenExpiring(1))
        await node.connected(2)
    assert [token for token, _, _ in node.attempts] == ["one", "two"]


@pytest.mark.parametrize("token", ["secret\n", "  secret", provider_of("secret\r\n")])
async def test_white_space_around_a_token_is_not_part_of_it(autojump_clock, node: FakeNode, connected, token) -> None:
    async with connected(token=token) as client:
        await client.wait_online()
    assert node.attempts[0][0] == "secret"


async def test_what_no_header_can_hold_is_for_the_node_to_refuse(autojump_clock, node: FakeNode, connected) -> None:
    async with connected(token="a\nHost: elsewhéré") as client:
        await client.wait_online()
    assert node.attempts[0][0] == "a?Host: elsewh?r?"


async def test_something_else_than_a_string_is_a_failure_of_the_provider() -> None:
    async def provider() -> str:
        return None  # type: ignore[return-value]

    with pytest.raises(ClientClosed, match="token provider failed: AttributeError"):
        await Tokens(provider).fetch()
