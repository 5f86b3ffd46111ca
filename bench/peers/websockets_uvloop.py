"""The peer "websockets on uvloop": echoes, broadcasts, or just holds connections.

No compression and no keepalive of its own: both would only add to its memory and time.
"""

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from bench.peers.process import BACKLOG, say_address

_members: set[ServerConnection] = set()


async def _echo(connection: ServerConnection) -> None:
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        return  # the load generator left without a close frame


async def _fan_out(connection: ServerConnection) -> None:
    """A connection to /sender has its messages broadcast to all others, and one byte back after each."""
    assert connection.request is not None
    if connection.request.path != "/sender":
        _members.add(connection)
        await connection.wait_closed()
        _members.discard(connection)
        return
    try:
        async for message in connection:
            broadcast(_members, message)
            await connection.send(b"+")
    except ConnectionClosed:
        return


async def _main(mode: str) -> None:
    handler = {"echo": _echo, "fanout": _fan_out}[mode]
    async with serve(
        handler, "127.0.0.1", 0, compression=None, ping_interval=None, server_header=None, backlog=BACKLOG
    ) as server:
        say_address(*next(iter(server.sockets)).getsockname())
        await server.wait_closed()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
