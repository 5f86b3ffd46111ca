"""Receipts that other nodes may have missed are told again; nothing else makes up for them."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.cluster import retelling as module
from gateway.cluster.retelling import LATELY_S, RETELL_AFTER_S, SLICE, Retelling


class Teller:
    """Who tells receipts, and notes that, as the owner does; Redis may be away."""

    def __init__(self) -> None:
        self.away = False
        self.told: list[tuple[str, str]] = []
        self.retelling = Retelling(self.tell, lambda: self.away)

    def tell(self, conversation_id: str, user: str) -> None:
        self.told.append((conversation_id, user))
        self.retelling.note(conversation_id, user)


@pytest.fixture
async def teller(nursery: trio.Nursery) -> Any:
    teller = Teller()
    nursery.start_soon(teller.retelling.run)
    return teller


async def test_what_was_told_lately_or_while_redis_was_away_is_told_again_once(
    teller: Teller, autojump_clock: MockClock
) -> None:
    teller.tell("d1", "long ago")
    await trio.sleep(LATELY_S + 1)
    teller.tell("d1", "lately")
    teller.away = True
    assert teller.retelling.everywhere
    for user in ("ann", "bob", "ann"):
        await trio.sleep(LATELY_S * 2)
        teller.tell("d1", user)
    teller.told.clear()
    teller.away = False
    teller.retelling.soon()
    assert teller.retelling.everywhere, "the directory does not know everybody yet"
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", "lately"), ("d1", "bob"), ("d1", "ann")]
    assert not teller.retelling.everywhere
    assert teller.retelling.told == 3
    await trio.sleep(LATELY_S + 1)
    teller.tell("d1", "zoe")
    teller.told.clear()
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", "zoe")]


async def test_a_redis_that_is_lost_again_is_told_by_its_next_return(teller: Teller, autojump_clock: MockClock) -> None:
    teller.retelling.soon()  # it is there for the first time
    await trio.sleep(RETELL_AFTER_S + 1)
    teller.away = True
    teller.tell("d1", "ann")
    await trio.sleep(LATELY_S * 2)
    teller.told.clear()
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == []
    teller.away = False
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", "ann")]


async def test_there_is_a_bound_and_many_are_told_in_slices(
    teller: Teller, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 2 * SLICE + 1
    monkeypatch.setattr(module, "KEPT_MAX", bound)
    teller.away = True
    for number in range(bound + 5):
        teller.tell("d1", f"u{number}")
    teller.told.clear()
    teller.away = False
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", f"u{number}") for number in range(5, bound + 5)]


async def test_a_node_without_redis_remembers_no_longer_than_it_takes_to_notice_a_loss(
    teller: Teller, autojump_clock: MockClock
) -> None:
    teller.away = True
    teller.tell("d1", "long ago")
    await trio.sleep(LATELY_S + 1)
    teller.tell("d1", "lately")
    teller.told.clear()
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", "lately")], "parcels get lost on the direct way, too"
    await trio.sleep(LATELY_S + 1)
    teller.tell("d1", "ann")
    teller.told.clear()
    teller.retelling.soon()
    await trio.sleep(RETELL_AFTER_S + 1)
    assert teller.told == [("d1", "ann")]
    assert teller.retelling.everywhere
