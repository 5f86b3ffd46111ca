"""TLS that ends in the node, for installations without a load balancer.

A ``TlsSocket`` behaves like the plain non-blocking socket that the rest of the edge works with, so that neither parking
nor writing knows of TLS, and connections without it pay nothing for it. With it a parked connection costs some 15 KB of
OpenSSL's state instead of nothing: see docs/operations.md.
"""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog
import trio

RECORD_BYTES_MAX: Final = 16_384
"""Bytes of content in one TLS record (RFC 8446 section 5.1)."""

RELOAD_INTERVAL_S: Final = 30.0
"""Seconds between two looks at the certificate's files, taken when a client connects."""

_WOULD_BLOCK: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

log = structlog.get_logger(__name__)


class TlsMisconfigured(Exception):
    """The certificate or its key cannot be used; the message says why, and what to set."""


class TlsSocket(ssl.SSLSocket):
    """The node's end of a TLS connection, non-blocking, with the calls that plain sockets have.

    What would block raises BlockingIOError, as on a plain socket; whatever else is wrong is another OSError.

    A record that did not fit into the socket is encrypted already, so OpenSSL wants the same bytes again. Their last
    byte is reported as not sent: whoever sends keeps it queued, waits for room and comes back with it, and a frame of
    which a part was encrypted counts as begun.
    """

    _held = b""
    """Content of the record that waits for room; its last byte comes again as the first of what is sent next."""

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what fits; returns how many bytes of it did. Raises OSError as a plain socket does."""
        sent = 0
        if self._held:
            self._write(self._held)
            del self._held
            sent = 1
        while sent < len(data):
            piece = data[sent : sent + RECORD_BYTES_MAX]
            try:
                self._write(piece)
            except BlockingIOError:
                self._held = bytes(piece)
                sent += len(piece) - 1
                if not sent:
                    raise
                return sent
            sent += len(piece)
        return sent

    def _write(self, piece: bytes) -> None:
        try:
            super().send(piece)
        except _WOULD_BLOCK:
            raise _would_block() from None

    def sendmsg(self, buffers: Iterable[Any], *_: Any) -> int:  # type: ignore[override]  # SSLSocket has none
        """Send what fits of several chunks, as ``send`` does."""
        total = 0
        for block in _blocks(buffers):
            try:
                sent = self.send(block)
            except BlockingIOError:
                if not total:
                    raise
                return total
            total += sent
            if sent < len(block):
                return total
        return total

    def recv(self, buflen: int = RECORD_BYTES_MAX, flags: int = 0) -> bytes:
        """Content of one record; empty at the end. Raises OSError as a plain socket does.

        It may be more than ``buflen``, but never more than RECORD_BYTES_MAX: nothing must stay behind in OpenSSL, where
        no epoll sees it.
        """
        try:
            return super().recv(max(buflen, RECORD_BYTES_MAX))
        except _WOULD_BLOCK:
            raise _would_block() from None

    def shutdown(self, how: int) -> None:
        """End this side: first in TLS, so that the peer knows nothing was cut off, then the socket."""
        with contextlib.suppress(OSError, ValueError):  # the peer's own end has not come yet, or it is gone
            self.unwrap()
        # Not as SSLSocket does it: what the peer still sends is to be decrypted.
        socket.socket.shutdown(self, how)


def _would_block() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _blocks(chunks: Iterable[Any]) -> Iterator[Any]:
    """Whole chunks joined up to the size of a record, so that many small frames are not as many records.

    A block never ends within a chunk: of a chunk whose record waits for room, all but the last byte was sent.
    """
    joined: list[Any] = []
    size = 0
    for chunk in chunks:
        if joined and size + len(chunk) > RECORD_BYTES_MAX:
            yield b"".join(joined)
            joined, size = [], 0
        joined.append(chunk)
        size += len(chunk)
    if joined:
        yield b"".join(joined)


class TlsServer:
    """The certificate of a node, and TLS connections made with it.

    The files are looked at now and then; a renewed certificate is used for whoever connects from then on.
    """

    def __init__(self, cert: str, key: str) -> None:
        """Load the certificate ``cert`` (with its chain) and its key (empty: in the same file).

        Raises:
            TlsMisconfigured: they cannot be used.
        """
        self._cert = cert
        self._key = key or cert
        self._looked_at_s = _now()
        self._seen = self._files()
        self._context = self._load()

    def wrap(self, sock: socket.socket) -> TlsSocket:
        """TLS on an accepted socket, which is detached; the handshake is still to be done. Raises OSError."""
        self._reload_if_renewed()
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TlsSocket)
        return wrapped

    def _reload_if_renewed(self) -> None:
        now = _now()
        if now < self._looked_at_s + RELOAD_INTERVAL_S:
            return
        self._looked_at_s = now
        try:
            seen = self._files()
            if seen != self._seen:
                self._context, self._seen = self._load(), seen
                log.info("certificate renewed", file=self._cert)
        except TlsMisconfigured as error:
            # Being renewed right now, or badly: the one at hand stays in force.
            log.error("certificate not renewed", reason=str(error))

    def _files(self) -> list[tuple[int, int]]:
        """What tells one version of the files from another."""
        found = []
        for name, path in (("tls_cert", self._cert), ("tls_key", self._key)):
            try:
                status = Path(path).stat()
            except OSError as error:
                raise TlsMisconfigured(f"the file {path} of {name} cannot be read: {error.strerror}") from None
            found.append((status.st_mtime_ns, status.st_ino))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = TlsSocket

        def refuse_password() -> str:
            raise TlsMisconfigured(f"the key in {self._key} is encrypted: give one without a password")

        try:
            context.load_cert_chain(self._cert, self._key, refuse_password)
        except ssl.SSLError as error:
            raise TlsMisconfigured(self._explain(error)) from None
        except OSError as error:
            raise TlsMisconfigured(f"{self._cert} or {self._key} cannot be read: {error.strerror}") from None
        return context

    def _explain(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key in {self._key} does not belong to the certificate in {self._cert}"
        if error.reason in {"NO_START_LINE", None}:
            return (
                f"{self._cert} and {self._key} hold no certificate and key that can be read: "
                "tls_cert and tls_key have to be PEM files"
            )
        return f"the certificate in {self._cert} with the key in {self._key} cannot be used: {error.reason}"


async def shake_hands(sock: TlsSocket) -> None:
    """Do the TLS handshake. Raises OSError (ssl.SSLError) when it fails. Cancelling leaves a socket of no more use."""
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return


def _now() -> float:
    """Seconds of the loop's clock; 0 before it runs (the files were just read then)."""
    return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
