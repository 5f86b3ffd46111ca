"""What a new program refuses to take over, and why."""

import os
import socket
import sys
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from gateway.auth import Verifier
from gateway.broker import channel_id_of
from gateway.cluster.backend import THREAD_SWITCH_S, Backend
from gateway.cluster.ports import Command, Identity
from gateway.cluster.redis_keys import sessions
from gateway.config import Settings
from gateway.node import Node
from gateway.upgrade.channel import HandOverFailed
from gateway.upgrade.heirs import EmbeddedHeir, heir_of
from gateway.upgrade.in_cluster import ClusterHeir, Told, same
from gateway.upgrade.messages import FORMAT, Offer, encode

SECRET = "a secret that two processes of one node share"
NEWS = channel_id_of("n" * 24)


def offer_of(settings: Settings, estate: bytes = b"") -> Offer:
    """As a node with these settings makes it."""
    shared = same(settings) if settings.store == "cassandra" else {}
    return Offer(FORMAT, "0.1.0", 1, settings.store, str(settings.data_dir.absolute()), shared, estate)


def test_what_is_of_another_kind_or_place_is_refused(tmp_path: Path) -> None:
    here = Settings(data_dir=tmp_path)
    assert isinstance(heir_of(offer_of(here), [], here), EmbeddedHeir)
    with pytest.raises(HandOverFailed, match="the store is cassandra there and embedded here"):
        heir_of(offer_of(replace(here, store="cassandra")), [], here)
    with pytest.raises(HandOverFailed, match=r"data_dir is .*elsewhere there and"):
        heir_of(offer_of(replace(here, data_dir=tmp_path / "elsewhere")), [], here)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("node_name", "second", "node_name is first there and second here"),
        ("roles", "edge", "roles is both there and edge here"),
        ("cassandra_keyspace", "other", "cassandra_keyspace is tidegate there and other here"),
        ("lease_s", 12.0, "lease_s is 10 there and 12 here"),
        ("advertise", "10.0.0.1", "advertise is .empty. there and 10.0.0.1 here"),
        ("redis_url", "redis://somewhere", "redis_url is .empty. there and given here"),
        ("cluster_secret", SECRET, "cluster_secret is .empty. there and given here"),
    ],
)
def test_one_incarnation_cannot_change_what_others_know_of_it(name: str, value: object, words: str) -> None:
    there = Settings(store="cassandra", node_name="first")
    with pytest.raises(HandOverFailed, match=words):
        heir_of(offer_of(there), [], replace(there, **{name: value}))


def test_secrets_are_not_told() -> None:
    settings = Settings(store="cassandra", redis_url="redis://:hunter2@somewhere", cluster_secret=SECRET)
    told = encode(offer_of(settings))
    assert b"hunter2" not in told
    assert SECRET.encode() not in told


def test_what_cannot_be_read_is_refused() -> None:
    settings = Settings(store="cassandra", node_name="first")
    with pytest.raises(HandOverFailed, match="cannot be read"):
        heir_of(offer_of(settings, b"\xc1"), [], settings)
    told = encode(Told("first:abc", "127.0.0.1:7000", True, False))
    with pytest.raises(HandOverFailed, match="0 descriptors came with the offer, not 1"):
        heir_of(offer_of(settings, told), [], settings)


@pytest.mark.parametrize(("there", "here"), [("east", "west"), ("east", "east"), ("", "east"), ("east", "")])
async def test_a_program_that_would_ask_another_datacenter_is_refused(there: str, here: str) -> None:
    settings = Settings(store="cassandra", node_name="first")
    heir = heir_of(offer_of(settings, encode(Told("first:abc", "x:1", False, False, there))), [], settings)
    assert isinstance(heir, ClusterHeir)
    tables = heir.backend.tables

    async def connect(*, task_status: trio.TaskStatus[None]) -> None:
        tables.datacenter = here
        task_status.started()

    tables.run = connect  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        if (there, here) == ("east", "west"):
            with pytest.raises(ExceptionGroup) as caught:
                await nursery.start(heir.run)
            assert caught.group_contains(
                HandOverFailed, match="asks Cassandra's datacenter 'east', and this process wou"
            )
        else:
            await nursery.start(heir.run)
            assert heir.backend.datacenter == here
        nursery.cancel_scope.cancel()


def test_an_offer_of_a_program_that_does_not_say_which_datacenter_it_asks_is_understood() -> None:
    settings = Settings(store="cassandra", node_name="first")
    offered = encode(("first:abc", "x:1", False, False))
    assert isinstance(heir_of(offer_of(settings, offered), [], settings), ClusterHeir)


def test_the_incarnation_and_the_port_for_other_nodes_go_on(tmp_path: Path) -> None:
    settings = Settings(store="cassandra", node_name="first", cluster_secret=SECRET, data_dir=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        told = encode(Told("first:abc", "node-1.example:7000", True, False))
        heir = heir_of(offer_of(settings, told), [os.dup(listening.fileno())], settings)
        assert isinstance(heir, ClusterHeir)
        assert heir.backend.incarnation == "first:abc"
        assert heir.backend.address == "node-1.example:7000"
        assert heir.backend.peers is not None
        with heir.backend.peers.listening as inherited:
            assert inherited.getsockname() == listening.getsockname()


async def test_the_successor_lets_other_threads_run_as_soon_as_its_predecessor_did(nursery: trio.Nursery) -> None:
    settings = Settings(store="cassandra", node_name="first")
    heir = heir_of(offer_of(settings, encode(Told("first:abc", "x:1", False, False))), [], settings)
    assert isinstance(heir, ClusterHeir)
    heir.backend.tables.run = connected  # type: ignore[method-assign]
    before_s = sys.getswitchinterval()
    try:
        await nursery.start(heir.run)
        assert sys.getswitchinterval() == pytest.approx(THREAD_SWITCH_S)
    finally:
        sys.setswitchinterval(before_s)


async def connected(*, task_status: trio.TaskStatus[None]) -> None:
    """In the place of a connection to Cassandra."""
    task_status.started()


async def test_what_redis_lost_is_made_up_for_when_the_connections_are_there() -> None:
    """Redis came back with nothing, and the node had not noticed when it gave up its place."""
    settings = Settings(store="cassandra", node_name="first", redis_url="redis://127.0.0.1:1", auth_secret=SECRET)
    verifier = Verifier.from_settings(settings)
    heir = heir_of(offer_of(settings, encode(Told("first:abc", "x:1", False, False))), [], settings)
    assert isinstance(heir, ClusterHeir)
    generations, redis = heir.backend._generations, heir.backend.redis
    assert generations is not None
    assert redis is not None
    asked: list[Command] = []
    redis.submit = lambda commands, _answer: asked.extend(commands)  # type: ignore[method-assign]
    generations.back(Identity("run", "replication"))
    generations._named([None, b"key"])
    with socket.create_server(("127.0.0.1", 0)) as sock:
        forebear = Backend(settings, "first", "x:1")
        Node(settings, forebear.store, verifier, [sock], forebear)
        node = heir.take(verifier, [sock], encode(forebear.succession.state()), [])  # type: ignore[arg-type]
        node.hub.by_user["bob"] = []  # type: ignore[assignment]
        node.hub.followers.restore({NEWS: {"bob": 1}})
        asked.clear()
        heir.taken()
    assert ("SADD", sessions("bob"), "first:abc") in asked
    assert not node.hub.followers.is_following("bob", NEWS), "who has left meanwhile was not told here"
