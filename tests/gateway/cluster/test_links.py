"""Links between two nodes: numbers without a repeat, and a pause in which nothing is lost."""

from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.cluster.links import FORGET_S, GATHER_ITEMS_MIN, GATHER_S, HELLO_S, REACH_MAX_S, STANDSTILL_S, Links
from gateway.cluster.parcels import Hello, Item, Parcel, TableChanged, Welcome, decode_parcel, encode_parcel
from gateway.cluster.ports import Taken


class Wires:
    """A Transport that keeps what is sent."""

    away = False

    def __init__(self) -> None:
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.sent: list[Parcel] = []

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        self.sent.append(decode_parcel(parcel))
        taken(True)

    def forget(self, incarnation: str) -> None:
        pass

    def bring(self, number: int, *items: Item) -> None:
        """A parcel of ``b`` arrives."""
        self.received(encode_parcel(Parcel("b", number, list(items))))


Live = dict[str, SimpleNamespace]


@pytest.fixture
def live() -> Live:
    """Who lives; a test may change it."""
    return {name: SimpleNamespace(nonce=1) for name in "ab"}


@pytest.fixture
def wires() -> Wires:
    return Wires()


def links_of(wires: Wires, live: Live) -> Links:
    return Links("a", wires, SimpleNamespace(live=live))


@pytest.fixture
async def links(wires: Wires, live: Live, nursery: trio.Nursery) -> Links:
    """Those of ``a``, and they run."""
    links = links_of(wires, live)
    nursery.start_soon(links.run)
    await wait_all_tasks_blocked()
    return links


async def test_who_said_hello_gets_no_number_twice_though_no_look_has_seen_it_yet(
    links: Links, wires: Wires, live: Live, autojump_clock: MockClock
) -> None:
    del live["b"]
    wires.bring(1, Hello())
    await trio.sleep(5)
    links.send("b", TableChanged(1))
    await wait_all_tasks_blocked()
    assert [parcel.number for parcel in wires.sent] == [1, 2]
    assert [parcel.items for parcel in wires.sent] == [[Welcome()], [TableChanged(1)]]


async def test_who_stood_still_may_have_missed_something_before_the_next_parcel_is_read(
    links: Links, wires: Wires, live: Live, autojump_clock: MockClock
) -> None:
    del live["b"]
    told: list[object] = []
    links.on_standstill = lambda seconds: told.append(seconds > STANDSTILL_S)
    links.received = lambda _sender, items: told.extend(items)
    await trio.sleep(100)
    wires.bring(1, TableChanged(1))
    autojump_clock.jump(STANDSTILL_S - 1.5)
    wires.bring(2, TableChanged(2))
    await trio.sleep(2)
    autojump_clock.jump(STANDSTILL_S + 1)
    wires.bring(3, TableChanged(3))
    await trio.sleep(2)
    assert told == [TableChanged(1), TableChanged(2), True, TableChanged(3)]
    autojump_clock.jump(STANDSTILL_S + 1)
    await trio.sleep(2)
    assert told[4:] == [True]


async def test_what_comes_during_a_pause_is_read_after_it_in_order(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    heard: list[Item] = []
    links.received = lambda _sender, items: heard.extend(items)
    await wait_all_tasks_blocked()
    links.pause()
    wires.bring(1, TableChanged(1))
    links.pause()  # once more changes nothing
    wires.bring(2, TableChanged(2))
    assert heard == []
    links.resume()
    wires.bring(3, TableChanged(3))
    links.resume()
    assert heard == [TableChanged(1), TableChanged(2), TableChanged(3)]
    assert links.gaps == 0


async def test_the_items_of_a_parcel_are_handed_over_at_once_but_for_those_for_the_links(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    heard: list[Sequence[Item]] = []
    links.received = lambda _sender, items: heard.append(items)
    await wait_all_tasks_blocked()
    wires.bring(1, Hello(), TableChanged(1), Welcome(), TableChanged(2))
    wires.bring(2, Hello())
    assert heard == [[TableChanged(1), TableChanged(2)]]
    assert not links.alone


async def test_another_process_goes_on_with_the_links_and_nobody_notices(
    wires: Wires, live: Live, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    first = links_of(wires, live)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as running:
            running.start_soon(first.run)
            wires.bring(1, Hello(), Welcome())
            await wait_all_tasks_blocked()
            first.pause()
            wires.bring(2, TableChanged(2))
            state = first.state()
            scope.cancel()
    assert first.idle

    second = links_of(wires, live)
    heard: list[Item] = []
    second.received = lambda _sender, items: heard.extend(items)
    second.restore(state)
    wires.bring(3, TableChanged(3))
    assert heard == [], "nothing before it runs"
    nursery.start_soon(second.run)
    await second.introduce()  # all know it already
    await wait_all_tasks_blocked()
    assert heard == [TableChanged(2), TableChanged(3)]
    assert second.gaps == 0
    second.send("b", TableChanged(4))
    await wait_all_tasks_blocked()
    assert [parcel.number for parcel in wires.sent] == [1, 2]


async def test_who_came_later_and_said_hello_by_itself_knows_the_next_process_too(
    wires: Wires, live: Live, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It may have died meanwhile: who connects to the next process would have to wait until it is found dead."""
    first = links_of(wires, live)
    wires.bring(1, Hello(1))
    second = links_of(wires, live)
    second.restore(first.state())
    nursery.start_soon(second.run)
    with trio.fail_after(1):
        await second.introduce()


async def test_every_parcel_says_from_which_hash_of_heads_on_its_sender_is_to_be_believed(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    counts_from = 1
    links.heads_from = lambda: counts_from
    links.send("b", TableChanged(1))
    await wait_all_tasks_blocked()
    counts_from = 4
    links.send_empty()
    await wait_all_tasks_blocked()
    assert [(parcel.heads_from, parcel.items) for parcel in wires.sent] == [(1, [TableChanged(1)]), (4, [])]


async def test_heads_that_do_not_count_any_more_are_noticed_once_and_never_count_again(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    voids: list[str] = []
    links.on_heads_void = voids.append
    assert links.heads_count_from("b") is None

    def bring(number: int, heads_from: int) -> None:
        wires.received(encode_parcel(Parcel("b", number, [], heads_from)))

    bring(1, 5)
    assert (links.heads_count_from("b"), voids) == (5, []), "nothing that came before could have been believed"
    bring(2, 5)
    bring(4, 6)  # the one that told it first was lost
    bring(5, 6)
    assert (links.heads_count_from("b"), voids, links.gaps) == (6, ["b"], 1)
    bring(6, 0)  # another process of that node, that has begun no hash yet
    assert (links.heads_count_from("b"), voids) == (6, ["b"])


async def test_another_process_notices_that_heads_do_not_count_which_the_one_before_it_believed(
    links: Links, wires: Wires, live: Live, autojump_clock: MockClock
) -> None:
    wires.received(encode_parcel(Parcel("b", 1, [], 5)))
    links.pause()
    state = links.state()
    second = links_of(wires, live)
    voids: list[str] = []
    second.on_heads_void = voids.append
    second.restore(state)
    second.resume()
    wires.received(encode_parcel(Parcel("b", 2, [], 6)))
    assert (second.heads_count_from("b"), voids) == (6, ["b"])


async def test_a_quiet_node_sends_at_once_and_a_busy_one_what_comes_close_behind_together(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:

    async def send(*versions: int) -> list[list[int]]:
        """What has left when nothing more happens without time passing."""
        for version in versions:
            links.send("b", TableChanged(version))
        await wait_all_tasks_blocked()
        return [[item.version for item in parcel.items if type(item) is TableChanged] for parcel in wires.sent]

    assert await send(1) == [[1]]
    assert await send(2) == [[1], [2]]
    many = range(3, 3 + GATHER_ITEMS_MIN)
    await send(*many)
    assert len(wires.sent) == 3
    await send(20)
    assert len(await send(21)) == 3
    await trio.sleep(GATHER_S)
    assert (await send())[2:] == [[*many], [20, 21]]
    assert (await send(22))[4:] == [[22]]


async def test_nodes_are_reached_once_all_of_them_have_answered(
    links: Links, wires: Wires, live: Live, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    live["c"] = SimpleNamespace(nonce=1)
    wires.bring(1, Welcome())  # that it was welcomed once says nothing of what it has read since
    reached = trio.Event()

    async def reach() -> None:
        links.send("b", TableChanged(1))
        await links.reach({"b", "c"})
        reached.set()

    nursery.start_soon(reach)
    await trio.sleep(HELLO_S / 2)
    assert [parcel.items for parcel in wires.sent] == [[TableChanged(1), Hello(1)], [Hello(1)]]
    wires.bring(2, Welcome(1))
    await trio.sleep(HELLO_S / 4)
    assert not reached.is_set()
    wires.received(encode_parcel(Parcel("c", 1, [Welcome(1)])))
    await wait_all_tasks_blocked()
    assert reached.is_set()


async def test_who_does_not_answer_is_asked_again_and_not_waited_for_long(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    wires.bring(1, Welcome())
    began_s = trio.current_time()
    assert not await links.reach({"b"})
    assert trio.current_time() - began_s == pytest.approx(REACH_MAX_S)
    assert [parcel.items for parcel in wires.sent if parcel.items] == [[Hello(1)], [Hello(2)]]
    with trio.fail_after(HELLO_S / 2):
        await links.introduce()  # it goes on counting as one that knows this node


async def test_an_answer_that_was_given_up_does_not_count_for_the_next_question(
    links: Links, wires: Wires, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    assert not await links.reach({"b"})
    found: list[Collection[str]] = []

    async def reach() -> None:
        found.append(await links.reach({"b"}))

    nursery.start_soon(reach)
    await wait_all_tasks_blocked()
    wires.bring(1, Welcome(1), Welcome(2))
    await trio.sleep(HELLO_S / 2)
    assert not found
    wires.bring(2, Welcome(3))
    await wait_all_tasks_blocked()
    assert found == [{"b"}]


async def test_nobody_is_waited_for_while_redis_is_away(links: Links, wires: Wires, autojump_clock: MockClock) -> None:
    wires.away = True
    with trio.fail_after(HELLO_S / 2):
        await links.reach({"b"})
    assert wires.sent == []


async def test_a_node_has_read_all_that_it_was_sent_once_a_hello_of_its_own_comes_back(
    links: Links, wires: Wires, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    found: list[bool] = []

    async def read_up() -> None:
        found.append(await links.read_up())

    for _ in range(2):
        nursery.start_soon(read_up)
        await wait_all_tasks_blocked()
    first, second = wires.sent
    wires.bring(1, TableChanged(1))
    wires.received(encode_parcel(first))
    await wait_all_tasks_blocked()
    assert found == [True], "the other one may wait behind something"
    wires.received(encode_parcel(second))
    await wait_all_tasks_blocked()
    assert found == [True, True]
    assert links.gaps == 0
    assert links.idle, "nobody has to answer"


async def test_an_inbox_that_is_not_read_is_not_waited_for_long(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    began_s = trio.current_time()
    assert not await links.read_up()
    assert trio.current_time() - began_s == pytest.approx(REACH_MAX_S)
    links.pause()
    assert not await links.read_up()
    links.resume()
    wires.away = True
    assert not await links.read_up()
    assert trio.current_time() - began_s == pytest.approx(REACH_MAX_S)


async def test_a_node_whom_nobody_knows_yet_has_nothing_to_read(wires: Wires, live: Live) -> None:
    links = links_of(wires, live)
    assert await links.read_up()
    links.restore(links.state())
    assert not await links.read_up(), "another process was known"
    assert wires.sent == []


async def test_who_has_not_been_heard_of_for_long_is_forgotten(
    links: Links, wires: Wires, autojump_clock: MockClock
) -> None:
    wires.bring(1, Welcome(1))
    await trio.sleep(FORGET_S + 5)
    assert "b" not in links.state().welcomes
    assert "b" not in links.state().expected


@pytest.mark.parametrize(
    "encoded", [b"", b"\xc1", b"\x92\xa2\xff\xfe\x01", b"\x95\xa1b\x01\x90\x00" + b"\x91" * 100_000]
)
async def test_what_is_no_parcel_of_this_program_is_lost_like_any_other(
    links: Links, wires: Wires, encoded: bytes, autojump_clock: MockClock
) -> None:
    heard: list[Item] = []
    links.received = lambda _sender, items: heard.extend(items)
    wires.bring(1, TableChanged(1))
    wires.received(encoded)
    wires.bring(3, TableChanged(3))
    assert heard == [TableChanged(1), TableChanged(3)]
    assert links.gaps == 1
