"""How the parts of a node in a cluster are put together, before any server is connected."""

from collections.abc import Iterator
from select import epoll
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.broker import channel_id_of
from gateway.cluster.backend import Backend
from gateway.config import Settings
from gateway.edge.connection import ConnectionTable
from gateway.edge.hub import Hub
from gateway.edge.writer import Writer

NEWS = channel_id_of("n" * 24)


@pytest.fixture
def hub() -> Iterator[Hub]:
    table = ConnectionTable()
    with epoll() as poll:
        yield Hub(table, Writer(table, poll, queue_bytes_max=1024, queue_age_max_s=1), devices_per_user_max=1)


@pytest.mark.parametrize("new", [True, False])
async def test_when_redis_is_there_again_nobody_follows_a_channel_until_the_next_sync(hub: Hub, new: bool) -> None:
    """While it did not know of this node, nobody was told here who left a channel."""
    backend = Backend(Settings(store="cassandra", redis_url="redis://127.0.0.1:1"), "n1", "127.0.0.1:1")
    node: Any = SimpleNamespace(hub=hub, table=ConnectionTable())
    backend.join(node)
    followers = hub.followers
    hub.by_user["bob"] = []  # type: ignore[assignment]
    followers.restore({NEWS: {"bob": 1}})
    assert followers.is_following("bob", NEWS)
    for notify in backend._generations.on_new:  # type: ignore[union-attr]
        notify(new)
    assert not followers.is_following("bob", NEWS)
