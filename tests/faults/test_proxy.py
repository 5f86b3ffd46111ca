import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import redis
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.torture.by_process import FaultsByProcess, _asked_for, _inode_of, _listed
from bench.torture.proxy import DOWN, UP, Direction, FaultProxy, Faults
from tests.faults.thread import ProxyThread
from tests.servers.redis import RedisServer

LOCAL = ("127.0.0.1", 0)
Stream = trio.abc.HalfCloseableStream


@contextlib.asynccontextmanager
async def joined(faults: Faults, pair: Callable = trio.testing.memory_stream_pair) -> AsyncIterator[tuple]:
    """A client and a server with these faults between them."""
    client, front = pair()
    back, server = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(faults.join, front, back)
        yield client, server
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def proxied(faults: object, answers: object = None) -> AsyncIterator[FaultProxy]:
    """A proxy before a server that gives back what it gets, in upper case; ``answers`` collects what it got."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                if answers is not None:
                    answers.append(chunk)
                await stream.send_all(chunk.upper())

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        proxy = FaultProxy(LOCAL, listener.socket.getsockname(), faults)
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()


async def nothing_comes(stream: trio.abc.ReceiveStream) -> bool:
    """Whether nothing comes in an hour of virtual time."""
    with trio.move_on_after(3_600):
        await stream.receive_some(1)
        return False
    return True


async def round_trip(stream: trio.abc.Stream, data: bytes = b"ping") -> bytes:
    await stream.send_all(data)
    return await stream.receive_some(100)


async def test_a_good_network_passes_bytes_and_both_ends() -> None:
    faults = Faults()
    async with joined(faults) as (client, server):
        await client.send_all(b"question")
        assert await server.receive_some(100) == b"question"
        await client.send_eof()
        assert await server.receive_some(100) == b""
        await server.send_all(b"answer")
        assert await client.receive_some(100) == b"answer"
        assert faults.open_connections == 1
        await server.send_eof()
        assert await client.receive_some(100) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert faults.open_connections == 0
    assert faults.passed_bytes == {UP: 8, DOWN: 6}
    assert (faults.opened, faults.resets) == (1, 0)


async def test_latency_delays_each_piece_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    faults.latency_s = 10.0
    async with joined(faults) as (client, server):
        began = trio.current_time()
        await client.send_all(b"1")
        await trio.sleep(4)
        await client.send_all(b"2")
        for data, seconds in ((b"1", 10), (b"2", 14)):
            assert await server.receive_some(100) == data
            assert trio.current_time() - began == pytest.approx(seconds)


async def test_less_latency_does_not_change_the_order(autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    faults.latency_s = 10.0
    async with joined(faults) as (client, server):
        await client.send_all(b"1")
        await trio.testing.wait_all_tasks_blocked()
        faults.latency_s = 0.0
        await client.send_all(b"2")
        assert await server.receive_some(1) == b"1"
        assert await server.receive_some(1) == b"2"


@pytest.mark.parametrize("silent", [UP, DOWN])
async def test_silence_is_one_way_until_healed(silent: Direction, autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    async with joined(faults) as (client, server):
        mute, heard = (client, server) if silent is UP else (server, client)
        faults.silence(silent)
        await heard.send_all(b"passes")
        assert await mute.receive_some(100) == b"passes"
        await mute.send_all(b"held")
        assert await nothing_comes(heard)
        faults.heal()
        assert await heard.receive_some(100) == b"held"


async def test_a_stall_holds_the_end_of_a_stream_too(autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    async with joined(faults) as (client, server):
        faults.stall()
        await client.send_all(b"last words")
        await client.send_eof()
        assert await nothing_comes(server)
        faults.heal()
        assert await server.receive_some(100) == b"last words"
        assert await server.receive_some(100) == b""


async def test_a_silent_direction_holds_a_bounded_amount(autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    # Here a send is over only when the proxy has taken all of it.
    async with joined(faults, trio.testing.lockstep_stream_pair) as (client, _):
        faults.silence(UP)
        with trio.move_on_after(60) as scope:
            for _ in range(1_000):
                await client.send_all(b"x")
        assert scope.cancelled_caught


async def test_slices_go_on_one_by_one() -> None:
    faults = Faults()
    faults.slice_bytes = 3
    async with joined(faults, trio.testing.lockstep_stream_pair) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"abcdefgh")
        assert [await server.receive_some(100) for _ in range(3)] == [b"abc", b"def", b"gh"]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    slice_bytes=st.none() | st.integers(1, 50),
    latencies_s=st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=8, max_size=8),
    stalls=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_whatever_happens_the_bytes_are_the_same(
    pieces: list[bytes], slice_bytes: int | None, latencies_s: list[float], stalls: list[bool]
) -> None:
    async def pass_all() -> bytes:
        faults = Faults()
        faults.slice_bytes = slice_bytes
        got = b""
        async with joined(faults) as (client, server):
            for piece, latency_s, stall in zip(pieces, latencies_s, stalls, strict=False):
                faults.latency_s = latency_s
                if stall:
                    faults.stall()
                await client.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
                if stall:
                    faults.heal()
                    faults.slice_bytes = slice_bytes
            await client.send_eof()
            async for chunk in server:
                got += chunk
        return got

    assert trio.run(pass_all, clock=trio.testing.MockClock(autojump_threshold=0)) == b"".join(pieces)


async def test_a_cut_resets_both_ends_and_lets_new_ones_in() -> None:
    faults, got = Faults(), []
    async with proxied(faults, got) as proxy:
        first = await trio.open_tcp_stream(*proxy.address)
        assert await round_trip(first) == b"PING"
        faults.cut()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await first.receive_some(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        async with await trio.open_tcp_stream(*proxy.address) as second:
            assert await round_trip(second) == b"PING"
        await first.aclose()
    assert (faults.opened, faults.resets) == (2, 1)


async def test_a_server_that_fails_is_seen_as_a_reset() -> None:
    faults = Faults()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = FaultProxy(LOCAL, listener.socket.getsockname(), faults)
        await nursery.start(proxy.run)
        async with await trio.open_tcp_stream(*proxy.address) as client, listener:
            server = await listener.accept()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await server.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some(1)
        # Nothing listens there any more.
        async with await trio.open_tcp_stream(*proxy.address) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some(1)
        nursery.cancel_scope.cancel()
    assert faults.open_connections == 0


async def test_a_partition_lets_nobody_in_until_healed() -> None:
    faults = Faults()
    async with proxied(faults) as proxy:
        async with await trio.open_tcp_stream(*proxy.address) as inside:
            assert await round_trip(inside) == b"PING"
            faults.partition()
            with pytest.raises(trio.BrokenResourceError):
                await inside.receive_some(1)
        async with await trio.open_tcp_stream(*proxy.address) as outside:
            with pytest.raises(trio.BrokenResourceError):
                await outside.receive_some(1)
        faults.heal()
        async with await trio.open_tcp_stream(*proxy.address) as again:
            assert await round_trip(again) == b"PING"


async def test_a_lost_reply_was_given_and_is_not_seen() -> None:
    faults, got = Faults(), []
    async with proxied(faults, got) as proxy, await trio.open_tcp_stream(*proxy.address) as client:
        assert await round_trip(client, b"before") == b"BEFORE"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(faults.lose_reply)
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"apply")
        assert got == [b"before", b"apply"]
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(100)
        async with await trio.open_tcp_stream(*proxy.address) as again:
            assert await round_trip(again) == b"PING"


async def line_of(stream: trio.abc.ReceiveStream) -> bytes:
    """The next line; a print may come in more pieces than one."""
    line = b""
    while not line.endswith(b"\n") and (piece := await stream.receive_some(1)):
        line += piece
    return line


CONNECT = """
import socket, sys
sys.stdin.readline()
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
link.sendall(b"x")
print(link.recv(1), flush=True)
sys.stdin.read(1)
try:
    print(link.recv(1))
except ConnectionResetError:
    print("reset")
"""


async def test_two_processes_have_faults_of_their_own() -> None:
    by_process = FaultsByProcess()
    # The second one connects from a child of the process that is known; the third is not known.
    prefixes = [[], ["/bin/sh", "-c", '"$@"; exit', "sh"], []]
    faults = [Faults(), Faults(), by_process.others]
    async with proxied(by_process) as proxy, contextlib.AsyncExitStack() as stack:
        children = []
        for prefix, own in zip(prefixes, faults, strict=True):
            command = [*prefix, sys.executable, "-c", CONNECT, proxy.address[0], str(proxy.address[1])]
            child = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            children.append(child)
            stack.push_async_callback(child.wait)
            for pipe in (child.stdin, child.stdout):
                await stack.enter_async_context(pipe)
            stack.callback(child.kill)
            if own is not by_process.others:
                by_process.watch(child.pid, own)
            await child.stdin.send_all(b"connect\n")
        for child in children:
            assert await line_of(child.stdout) == b"b'X'\n"
        assert [own.opened for own in faults] == [1, 1, 1]
        faults[1].cut()
        await children[1].stdin.aclose()
        assert await line_of(children[1].stdout) == b"reset\n"
        assert [own.open_connections for own in faults] == [1, 0, 1]


async def test_a_forgotten_process_is_like_any_other() -> None:
    by_process, own = FaultsByProcess(), Faults()
    by_process.watch(os.getpid(), own)
    async with proxied(by_process) as proxy:
        async with await trio.open_tcp_stream(*proxy.address) as client:
            assert await round_trip(client) == b"PING"
        assert (own.opened, by_process.others.opened) == (1, 0)
        by_process.forget(os.getpid())
        async with await trio.open_tcp_stream(*proxy.address) as client:
            assert await round_trip(client) == b"PING"
        assert (own.opened, by_process.others.opened) == (1, 1)


@pytest.mark.parametrize("find", [_inode_of, _asked_for, _listed])
def test_the_socket_at_the_other_end_is_found_by_its_addresses(find: Callable) -> None:
    with socket.create_server(LOCAL) as server, socket.create_connection(server.getsockname()) as client:
        with server.accept()[0] as link:
            ends = client.getsockname(), client.getpeername()
            assert find(*ends) == str(os.fstat(client.fileno()).st_ino)
            assert find(*reversed(ends)) == str(os.fstat(link.fileno()).st_ino)
        assert find(("127.0.0.1", 1), server.getsockname()) == ""


def test_a_thread_serves_tests_that_block() -> None:
    with socket.create_server(LOCAL) as server:
        faults = Faults()
        proxy = FaultProxy(LOCAL, server.getsockname(), faults)
        with ProxyThread([proxy]) as thread:
            with socket.create_connection(proxy.address) as client:
                link, _ = server.accept()
                client.sendall(b"x")
                assert link.recv(1) == b"x"
                thread.call(faults.cut)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
                link.close()
            with pytest.raises(OSError, match="in use"), ProxyThread([FaultProxy(proxy.address, LOCAL)]):
                pass
    assert not any(thread.name == "fault proxies" for thread in threading.enumerate())


def test_redis_behind_a_stalled_network(redis_server: RedisServer) -> None:
    faults = Faults()
    proxy = FaultProxy(LOCAL, (redis_server.address, redis_server.port), faults)
    once = Retry(NoBackoff(), retries=0)
    with ProxyThread([proxy]) as thread:
        host, port = proxy.address
        with redis.Redis(host, port) as patient, redis.Redis(host, port, socket_timeout=0.05, retry=once) as hasty:
            patient.set("key", "1")
            hasty.ping()
            thread.call(faults.silence, DOWN)
            with pytest.raises(redis.TimeoutError):
                hasty.incr("key")
            thread.call(faults.heal)
            # It was done; only the answer had not come.
            assert patient.get("key") == b"2"
