"""Addresses of this machine's loopback network, which is 127.0.0.0/8: room for any number of servers at once."""

import contextlib
import secrets
import socket

from deploy.processes import ServerFailed

_TRIES = 100


def free_network(*ports: int) -> str:
    """A prefix such as "127.83.4." on whose first address nothing listens at these ports.

    It is drawn at random, so that two who ask at once get different ones. Raises ServerFailed.
    """
    for _ in range(_TRIES):
        network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}."
        if all(_is_free(network + "1", port) for port in ports):
            return network
    raise ServerFailed(f"no loopback address with free ports {', '.join(map(str, ports))} in {_TRIES} tries")


def accepts(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
