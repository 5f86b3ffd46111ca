"""The link between a supervisor and its nodes: real sockets, both ends in this process."""

from pathlib import Path

import pytest
import trio

from gateway.config import Settings
from gateway.process_link import DRAIN, END, NodeEnd, SupervisorEnd, make_pair


@pytest.fixture
def ends():
    ours, theirs = make_pair()
    yield SupervisorEnd(ours), NodeEnd(theirs)
    ours.close()
    theirs.close()


async def test_settings_arrive_as_they_were(ends):
    supervisor, node = ends
    settings = Settings(
        data_dir=Path("ä/b"), auth_secret="ß" * 40, allowed_origins=["https://a"] * 500, lease_s=3.25, roles="edge"
    )
    supervisor.send_settings(settings)
    assert node.receive_settings() == settings


async def test_settings_that_are_too_long_are_refused_by_size(ends):
    with pytest.raises(OSError, match=r"settings of \d{6} bytes do not fit 131072: shorten lists"):
        ends[0].send_settings(Settings(allowed_origins=["https://a.example"] * 10_000))


async def test_orders_come_one_by_one_and_the_end_of_the_supervisor_last(ends):
    supervisor, node = ends
    supervisor.send_settings(Settings())
    supervisor.order(DRAIN)
    supervisor.order(END)
    supervisor.close()
    node.receive_settings()
    assert [await node.receive_order() for _ in range(4)] == [DRAIN, END, b"", b""]


async def test_a_supervisor_that_is_gone_before_the_settings(ends):
    supervisor, node = ends
    supervisor.close()
    with pytest.raises(EOFError):
        node.receive_settings()


async def test_a_supervisor_that_is_gone_with_words_of_the_node_unread(ends):
    supervisor, node = ends
    supervisor.send_settings(Settings())
    node.receive_settings()
    node.say_ready("http://a:1")
    supervisor.close()
    node.say_ready("http://a:1")
    assert await node.receive_order() == b""


async def test_the_node_tells_its_address(ends, nursery):
    supervisor, node = ends
    supervisor.send_settings(Settings())
    node.receive_settings()
    nursery.start_soon(supervisor.listen)
    node.say_ready("http://127.0.0.1:5")
    with trio.fail_after(60):
        await supervisor.ready.wait()
    assert supervisor.address == "http://127.0.0.1:5"


async def test_listening_ends_with_the_node_and_orders_to_it_are_no_error():
    ours, theirs = make_pair()
    supervisor = SupervisorEnd(ours)
    theirs.close()
    with trio.fail_after(60):
        await supervisor.listen()
    assert not supervisor.ready.is_set()
    supervisor.order(DRAIN)
    supervisor.close()
