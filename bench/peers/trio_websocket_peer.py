"""The peer "trio-websocket": echoes, or just holds connections."""

import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

from bench.peers.process import say_address


async def _echo(request: WebSocketRequest) -> None:
    connection: WebSocketConnection = await request.accept()
    while True:
        try:
            await connection.send_message(await connection.get_message())
        except ConnectionClosed:
            return


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4_096)
        server = WebSocketServer(_echo, listeners, handler_nursery=nursery)
        await nursery.start(server.run)
        say_address(*listeners[0].socket.getsockname())


if __name__ == "__main__":
    assert sys.argv[1] == "echo"
    trio.run(_main)
