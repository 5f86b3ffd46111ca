"""The API in front of a fake node, served on loopback sockets."""

from collections.abc import AsyncIterator

import pytest
import trio

from gateway.api.app import Api
from gateway.api.server import HttpServer
from gateway.config import Settings
from tests.gateway.api.support import FakeNode, Front


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def front(node: FakeNode, nursery: trio.Nursery) -> AsyncIterator[Front]:
    api = Api(node, "0.0.0")
    server = HttpServer(api, Settings())
    await nursery.start(lambda task_status: server.run(task_status=task_status))
    yield Front(node, server, api)
    nursery.cancel_scope.cancel()
