"""What a service manager is told, where there is one (sd_notify(3)): one datagram, no library."""

import os
import socket

import structlog

log = structlog.get_logger(__name__)


def notify(state: str) -> None:
    """Send ``state`` (``READY=1``, ``MAINPID=123``) to the service manager that NOTIFY_SOCKET names, if any."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("service manager not notified", state=state, error=str(error))
