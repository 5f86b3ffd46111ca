"""TLS sockets with tiny buffers: nothing lost or doubled whatever blocks; certificates that are renewed or wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.certificates import Certificate, make_certificate
from gateway.broker import Delivery
from gateway.edge.connection import TLS, Connection, plain_socket
from gateway.edge.outgoing import PushBatch
from gateway.edge.tls import RECORD_BYTES_MAX, RELOAD_INTERVAL_S, TlsMisconfigured, TlsServer, TlsSocket
from gateway.edge.writer import SendQueue
from protocol.codec import encode_entry
from protocol.frames import Entry


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> TlsServer:
    return TlsServer(str(certificate.certificate_path), str(certificate.key_path))


class Pair:
    """Both ends of a TLS connection in one thread, the handshake done."""

    def __init__(self, server: TlsServer, certificate: Certificate, *, buffer: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.ours: TlsSocket = server.wrap(ours)
        context = certificate.client_context()
        self.theirs = context.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
        ends: list[ssl.SSLSocket] = [self.theirs, self.ours]
        for _ in range(20):
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        assert self.theirs.version() == "TLSv1.3"

    def received(self, limit: int = 65_536) -> bytes:
        """What the client's end can read now, in pieces of at most ``limit`` bytes."""
        data = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self.theirs.recv(limit):
                data += piece
        return data

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def pair(server: TlsServer, certificate: Certificate) -> Iterator[Pair]:
    made = Pair(server, certificate)
    yield made
    made.close()


def test_bytes_go_both_ways_and_an_empty_socket_blocks(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair.ours.recv(100)
    pair.theirs.send(b"hello")
    assert pair.ours.recv(100) == b"hello"
    assert pair.ours.send(b"welcome") == 7
    assert pair.ours.sendmsg([b"to", b"", b"you"]) == 5
    assert pair.received() == b"welcometoyou"


def test_no_content_stays_where_no_epoll_sees_it(pair: Pair) -> None:
    pair.theirs.send(b"x" * RECORD_BYTES_MAX)
    assert len(pair.ours.recv(1)) == RECORD_BYTES_MAX
    assert pair.ours.pending() == 0


def test_the_end_of_one_side_is_told_and_the_other_goes_on(pair: Pair) -> None:
    pair.ours.send(b"bye")
    pair.ours.shutdown(socket.SHUT_WR)
    assert pair.received() == b"bye"
    assert pair.theirs.recv(1) == b""  # an orderly end: a cut would raise
    pair.theirs.send(b"last words")
    assert pair.ours.recv(100) == b"last words"
    pair.theirs.close()
    assert pair.ours.recv(100) == b""


def test_a_peer_that_is_gone_is_an_os_error(pair: Pair) -> None:
    pair.theirs.close()
    with pytest.raises((BrokenPipeError, ssl.SSLEOFError)):
        pair.ours.send(b"x" * 100)
    assert pair.ours.recv(100) == b""


frames = st.one_of(
    st.binary(min_size=2, max_size=40),
    st.integers(RECORD_BYTES_MAX - 2, RECORD_BYTES_MAX * 3 + 2).map(lambda size: bytes([size % 251]) * size),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(frames, min_size=1, max_size=8), st.data())
def test_whatever_blocks_nothing_is_lost_or_doubled(
    server: TlsServer, certificate: Certificate, chunks: list[bytes], data: st.DataObject
) -> None:
    """What a writer does: send, queue the rest, and go on when there is room."""
    pair = Pair(server, certificate, buffer=4096)
    try:
        queue = SendQueue(0)
        for chunk in chunks:
            queue.append(chunk)
        received = b""
        while queue.chunks:
            with contextlib.suppress(BlockingIOError):
                queue.consume(pair.ours.sendmsg(list(queue.chunks)), 0)
            received += pair.received(data.draw(st.sampled_from([1000, 70_000])))
        assert received + pair.received() == b"".join(chunks)
    finally:
        pair.close()


@settings(max_examples=60)
@given(st.lists(frames, min_size=1, max_size=6))
def test_what_a_close_cuts_is_never_part_of_a_frame(
    server: TlsServer, certificate: Certificate, chunks: list[bytes]
) -> None:
    """A frame of which a record waits for room counts as begun, so that it is finished before the close frame."""
    pair = Pair(server, certificate, buffer=4096)
    try:
        queue = SendQueue(0)
        for chunk in chunks:
            queue.append(chunk)
        with contextlib.suppress(BlockingIOError):
            queue.consume(pair.ours.sendmsg(list(queue.chunks)), 0)
        queue.drop_unbegun()
        queue.append(b"close")
        received = pair.received()
        while queue.chunks:
            with contextlib.suppress(BlockingIOError):
                queue.consume(pair.ours.sendmsg(list(queue.chunks)), 0)
            received += pair.received()
        whole = [b"", *(b"".join(chunks[: count + 1]) for count in range(len(chunks)))]
        assert received in [sent + b"close" for sent in whole]
    finally:
        pair.close()


async def test_a_delivery_to_many_reaches_tls_encrypted_and_others_plain(edge, pair: Pair) -> None:
    assert plain_socket(pair.ours) is pair.ours
    secure = Connection(pair.ours, "alice", TLS)
    edge.table.insert(secure, ends_s=1e9, device_key=1)
    edge.parking.park(secure)
    edge.hub.add(secure)
    plain = edge.connect("bob")
    delivery = Delivery("d1", ("alice", "bob"), [encode_entry(Entry(1, 1, 1, "carol", "m"))], [None])
    edge.hub.deliver(delivery)
    await edge.settle()
    assert pair.received() == PushBatch(delivery).joined == plain.read()
    edge.writer.abort(secure)


async def test_a_parked_tls_connection_is_read(edge, pair: Pair) -> None:
    secure = Connection(pair.ours, "alice", TLS)
    edge.table.insert(secure, ends_s=1e9, device_key=1)
    edge.parking.park(secure)
    edge.hub.add(secure)
    pair.theirs.send(b"\x82\x83\x00\x00\x00\x00abc")
    pair.theirs.send(b"\x82\x83\x00\x00\x00\x00def")
    await edge.settle()
    assert [payload for _, payload in edge.handled] == [b"abc", b"def"]
    pair.theirs.close()
    await edge.settle()
    assert edge.table.count == 0


def test_certificates_that_cannot_be_used_are_explained(tmp_path, certificate: Certificate) -> None:
    other = make_certificate(tmp_path / "other", [])
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    good = str(certificate.certificate_path)
    for cert, key, said in (
        (str(tmp_path / "absent.pem"), "", r"absent\.pem of tls_cert cannot be read: No such file"),
        (good, str(tmp_path / "absent.key"), r"absent\.key of tls_key cannot be read: No such file"),
        (good, str(other.key_path), r"server\.key does not belong to the certificate"),
        (str(empty), "", r"empty\.pem .* have to be PEM files"),
        (good, "", r"have to be PEM files"),
    ):
        with pytest.raises(TlsMisconfigured, match=said):
            TlsServer(cert, key)
    TlsServer(str(certificate.chain_path), "")


def test_older_tls_is_refused(server: TlsServer, certificate: Certificate) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    context = certificate.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = context.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
    wrapped = server.wrap(ours)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        wrapped.do_handshake()
    wrapped.close()
    client.close()


async def test_a_renewed_certificate_is_used_for_whoever_comes_next(tmp_path, autojump_clock) -> None:
    old, new = make_certificate(tmp_path / "old", []), make_certificate(tmp_path / "new", [])
    path = tmp_path / "in-force.pem"
    path.write_bytes(old.chain_path.read_bytes())
    server = TlsServer(str(path), "")
    Pair(server, old).close()
    replacement = tmp_path / "replacement.pem"
    replacement.write_bytes(new.chain_path.read_bytes())
    replacement.rename(path)
    Pair(server, old).close()  # not looked at yet
    await trio.sleep(RELOAD_INTERVAL_S)
    Pair(server, new).close()
    path.write_text("broken")
    await trio.sleep(RELOAD_INTERVAL_S)
    Pair(server, new).close()
