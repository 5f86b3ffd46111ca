"""The end of a socket that never became a connection."""

import socket
from collections.abc import Callable

from protocol import limits


def farewell(sock: socket.socket, data: bytes, close: Callable[[], None] | None = None) -> None:
    """Send last bytes and close, reading what the peer sent meanwhile so that it gets them and not a reset.

    ``close``: closes it where tasks wait on it.
    """
    try:
        sock.send(data)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(limits.COMMAND_BYTES_MAX)
    except OSError:
        pass  # the peer is gone, or has sent nothing more: there is nobody left to tell
    finally:
        (close or sock.close)()
