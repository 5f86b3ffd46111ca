"""Where other nodes reach this one directly: a listening socket of its own, whose address goes into the lease."""

import socket
from typing import Final

from gateway.addresses import parse_advertised
from gateway.cluster.peers import listen_for_peers
from gateway.config import Settings

WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - what is looked for, not bound to
"""Addresses that mean all of this machine's, and that nobody can connect to."""


class PeerPortUnusable(Exception):
    """Other nodes could not reach this one; the message says why and what to do."""


def open_for_peers(settings: Settings) -> tuple[socket.socket, str]:
    """The listening socket for other nodes, and its ``HOST:PORT`` as they reach it. Raises PeerPortUnusable.

    It listens where clients are served, too, on the port of ``advertise`` or on one that the system chooses.
    """
    host, port = parse_advertised(settings.advertise) if settings.advertise else ("", 0)
    try:
        listening = listen_for_peers(settings.host, port)
    except OSError as error:
        raise PeerPortUnusable(
            f"cannot listen for other nodes on {settings.host}, port {port or 'of the system'}: {error.strerror}; "
            "give another HOST:PORT with --advertise, or only a HOST: the system then chooses the port"
        ) from None
    if not host:
        host = socket.gethostname() if settings.host in WILDCARDS else settings.host
    return listening, f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
