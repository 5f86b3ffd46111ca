"""The process that takes over: prepares all it can, receives what its predecessor had, and serves."""

import gc
import os
import socket
import time
from importlib.metadata import version
from typing import Final

import structlog
import trio

from gateway.auth import Verifier
from gateway.config import Settings
from gateway.heap import collect_less_often, give_back_large_blocks
from gateway.node import Node, serve
from gateway.process_keeper import FENCED
from gateway.process_link import NodeEnd
from gateway.upgrade import PREDECESSOR_VARIABLE
from gateway.upgrade.channel import Channel, Gone, HandOverFailed
from gateway.upgrade.heirs import Heir, heir_of
from gateway.upgrade.messages import FORMAT, Ack, Begin, Chunk, Failed, Offer, Ready, Taken
from gateway.upgrade.predecessor import Upgrades
from gateway.upgrade.restore import Restorer

MESSAGE_TIMEOUT_S: Final = 60.0
"""Seconds of silence after which a predecessor is given up. It has limits of its own, and when it ends this process
notices at once: this is for one that is stopped."""

log = structlog.get_logger(__name__)


def channel_to_predecessor() -> Channel:
    """The channel that a predecessor has left this process, by PREDECESSOR_VARIABLE, which is removed.

    Raises HandOverFailed when there is none.
    """
    text = os.environ.pop(PREDECESSOR_VARIABLE, "")
    try:
        descriptor = int(text)
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.family != socket.AF_UNIX:
            raise OSError
    except (OSError, ValueError):
        raise HandOverFailed(
            f"{PREDECESSOR_VARIABLE} is {text!r}, which is no channel to a node: only an upgrade may set it, remove it"
        ) from None
    return Channel(sock)


def tell_failure(channel: Channel, reason: str) -> None:
    """Tell the predecessor why this process cannot take over, if it is there to hear it and still has to decide."""
    if channel.closed:
        return
    try:
        channel.send(Failed(reason), until_s=time.monotonic() + 1.0)
    except HandOverFailed as error:
        log.warning("predecessor not told", reason=reason, error=str(error))


def main(settings: Settings, channel: Channel, link: NodeEnd | None = None) -> None:
    """Run a node in the place of the one at the other end of ``channel``; otherwise as ``gateway.node.main`` does.

    ``link`` leads to the supervisor of both, if there is one.

    Raises:
        HandOverFailed: there is nothing to take over, or not any more; the predecessor goes on.
        StoreError, AuthMisconfigured, SecretUnusable: as ``gateway.node.main`` does.
    """
    give_back_large_blocks()
    collect_less_often()
    verifier = Verifier.from_settings(settings)
    trio.run(_succeed, settings, verifier, channel, link)


async def _succeed(settings: Settings, verifier: Verifier, channel: Channel, link: NodeEnd | None) -> None:
    offer, descriptors = channel.receive(Offer, until_s=time.monotonic() + MESSAGE_TIMEOUT_S)
    if offer.format != FORMAT:
        raise HandOverFailed(
            f"this program (tidegate {version('tidegate')}) hands over in format {FORMAT}, "
            f"tidegate {offer.version} in {offer.format}: restart the node instead"
        )
    heir = heir_of(offer, descriptors, settings)
    if verifier.jwks is not None:
        await verifier.jwks.refresh()
    async with trio.open_nursery() as nursery:
        await nursery.start(heir.run)
        gc.collect()
        gc.freeze()
        # What comes now is a burst of objects that stay: the collector would look at them over and over.
        gc.disable()
        channel.send(Ready(FORMAT, version("tidegate")), until_s=time.monotonic() + MESSAGE_TIMEOUT_S)
        node = _take_over(heir, verifier, channel)

        def taken() -> None:
            try:
                channel.send(Taken(), until_s=time.monotonic() + MESSAGE_TIMEOUT_S)
            except Gone:  # it has ended after it had given everything: nobody but this process can go on
                log.warning("the predecessor ended before it was told")
            node.started = True  # from now on a signal drains it, whatever it still waits for
            heir.taken()
            channel.close()
            gc.freeze()  # nearly all of it stays, and a collection comes soon
            gc.enable()

        node.before_serving = taken
        # Nothing is printed: the address is that which the predecessor has printed.
        await serve(node, lambda _node: None, Upgrades(node, heir.estate(), supervised=link is not None), link)
        nursery.cancel_scope.cancel()
    if node.fenced:
        raise SystemExit(FENCED)


def _take_over(heir: Heir, verifier: Verifier, channel: Channel) -> Node:
    """A node with all that the predecessor had, not yet serving. A plain call: there is nothing else to do."""
    until_s = time.monotonic() + MESSAGE_TIMEOUT_S
    begin, descriptors = channel.receive(Begin, until_s=until_s)
    began_s = time.monotonic()
    sockets = [socket.socket(fileno=fd) for fd in descriptors[: begin.listeners]]
    for sock in sockets:
        sock.setblocking(False)
    node = heir.take(verifier, sockets, begin.estate, descriptors[begin.listeners :])
    estate_s = time.monotonic()
    restorer = Restorer(node, begin)
    while restorer.count < begin.connections:
        chunk, descriptors = channel.receive(Chunk, until_s=until_s)
        restorer.take(chunk, descriptors)
        channel.send(Ack(), until_s=until_s)
    restorer.finish()
    log.info(
        "taking over",
        connections=restorer.count,
        estate_ms=(estate_s - began_s) * 1e3,
        connections_ms=(time.monotonic() - estate_s) * 1e3,
    )
    return node
