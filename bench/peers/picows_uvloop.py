"""The peer "picows on uvloop" (Cython): echoes, fans out, or just holds connections."""

import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.peers.process import BACKLOG, say_address

_members: set[WSTransport] = set()


class _Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_bytes())


class _Member(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        _members.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        _members.discard(transport)


class _Sender(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        message = frame.get_payload_as_bytes()
        for member in _members:
            member.send(WSMsgType.BINARY, message)
        transport.send(WSMsgType.BINARY, b"+")


def _listener(mode: str, request: WSUpgradeRequest) -> WSListener:
    if mode == "echo":
        return _Echo()
    return _Sender() if request.path == b"/sender" else _Member()


async def _main(mode: str) -> None:
    server = await ws_create_server(
        lambda request: _listener(mode, request), "127.0.0.1", 0, backlog=BACKLOG, enable_auto_ping=False
    )
    say_address(*server.sockets[0].getsockname())
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
