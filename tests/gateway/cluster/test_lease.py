import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from gateway.cluster.lease import Fenced, Lease
from store.coordination import LeaseRecord
from store.interface import Unavailable
from tests.fakes.coordination import MemoryCoordination


def make(coordination: MemoryCoordination, node: str = "n1") -> Lease:
    return Lease(
        coordination,
        node=node,
        address="127.0.0.1:1",
        owns=True,
        protocol=1,
        lease_s=10.0,
        renew_s=2.0,
        clock=trio.current_time,
    )


async def ended(coordination: MemoryCoordination) -> Lease:
    """The lease of a node that runs no more, and has not given it up."""
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        nursery.cancel_scope.cancel()
    return lease


async def test_valid_while_it_is_renewed_and_not_before_it_is_taken(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    assert not lease.valid()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        for _ in range(100):
            await trio.sleep(1)
            assert lease.valid()
        assert lease.renewals >= 49
        assert coordination.rows[lease.incarnation].alive
        nursery.cancel_scope.cancel()


async def test_counted_from_when_the_renewal_was_sent_less_a_margin(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination(delay_s=1.0)
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        sent_s = trio.current_time()
        await nursery.start(lease.run)
        coordination.away = True
        await trio.sleep_until(sent_s + 8.9)
        assert lease.valid()
        await trio.sleep_until(sent_s + 9.0)
        assert not lease.valid()
        coordination.away = False
        await trio.sleep(5)
        assert lease.valid()
        nursery.cancel_scope.cancel()


async def test_an_answer_that_got_lost_is_found_in_the_row(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lost = 0

    def lose(what: str) -> bool:
        nonlocal lost
        lost += 1
        return lost % 3 > 0

    coordination.lose_answer = lose
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        for _ in range(60):
            await trio.sleep(1)
            assert lease.valid()
        assert coordination.rows[lease.incarnation].nonce == lease.record.nonce
        nursery.cancel_scope.cancel()


async def test_a_renewal_applied_before_an_outage_counts_from_its_own_sending(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)

    def lose_and_fall(what: str) -> bool:
        coordination.away = what == "renew"
        return what == "renew"

    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        coordination.lose_answer = lose_and_fall
        await trio.sleep(2.1)  # one renewal applied, its answer lost, then nothing can be read
        applied_s = trio.current_time()
        await trio.sleep_until(applied_s + 8)
        assert not lease.valid(), "known to be applied is only the first"
        coordination.lose_answer = lambda _what: False
        coordination.away = False
        await trio.sleep(1)
        assert lease.valid()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("gone", [False, True])
async def test_marked_dead_means_fenced_for_ever(autojump_clock: MockClock, gone: bool) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            await coordination.mark_dead(lease.incarnation, coordination.rows[lease.incarnation].nonce)
            if gone:
                await coordination.remove_lease(lease.incarnation)
            await trio.sleep(20)
    assert caught.group_contains(Fenced)
    assert lease.fenced
    assert not lease.valid()


async def test_a_removed_row_that_a_late_insertion_brings_back_is_no_lease(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            first = coordination.rows[lease.incarnation]
            await trio.sleep(20)
            coordination.rows[lease.incarnation] = first
            await trio.sleep(20)
    assert caught.group_contains(Fenced)
    assert not lease.valid()


async def test_a_late_try_to_enter_it_does_not_bring_it_back_either(autojump_clock: MockClock) -> None:
    """The lease was never renewed: the nonce of the first try is the newest that was ever in the row."""
    coordination = MemoryCoordination()
    tries: list[LeaseRecord] = []
    take = coordination.take_lease

    async def lose_the_first(lease: LeaseRecord) -> bool:
        tries.append(lease)
        if len(tries) == 1:
            raise Unavailable("no answer, and it is still on its way")
        return await take(lease)

    coordination.take_lease = lose_the_first  # type: ignore[method-assign]
    lease = make(coordination)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            late, entered = tries
            assert coordination.rows[lease.incarnation] == entered
            coordination.rows[lease.incarnation] = late
            await trio.sleep(20)
    assert caught.group_contains(Fenced)


async def test_waits_for_the_store_to_be_there(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    coordination.away = True
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.sleep(30)
        assert not lease.valid()
        coordination.away = False
        await trio.sleep(1)
        assert lease.valid()
        nursery.cancel_scope.cancel()


async def test_released_is_dead_and_silent(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = await ended(coordination)
    await lease.release()
    assert not lease.valid()
    assert not coordination.rows[lease.incarnation].alive


async def test_a_renewal_that_comes_when_it_is_given_up_does_not_keep_it_alive(autojump_clock: MockClock) -> None:
    """It was under way when the node ended: the row is another one than what the node knows of."""
    coordination = MemoryCoordination()
    lease = await ended(coordination)
    assert await coordination.renew_lease(lease._next(), lease.record.nonce)
    await lease.release()
    assert not coordination.rows[lease.incarnation].alive


async def test_one_that_is_gone_already_need_not_be_given_up(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = await ended(coordination)
    coordination.rows.clear()
    await lease.release()
    assert not coordination.rows


async def test_a_store_that_takes_nearly_half_a_lease_for_each_answer_keeps_it(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        coordination.delay_s = 2.0  # there, and as much back
        for _ in range(600):
            await trio.sleep(0.1)
            assert lease.valid()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("delay_s", [2.5, 3.5, 4.2])
async def test_an_answer_that_took_most_of_a_lease_still_counts(autojump_clock: MockClock, delay_s: float) -> None:
    """Given up, none would ever count: a store that is slow would be as good as one that is away."""
    coordination = MemoryCoordination()
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        coordination.delay_s = delay_s
        await trio.sleep(20)
        sure = 0
        for _ in range(1_000):
            await trio.sleep(0.1)
            sure += lease.valid()
        assert sure > 50
        assert lease.record.nonce <= coordination.rows[lease.incarnation].nonce
        nursery.cancel_scope.cancel()


async def test_what_was_read_before_a_renewal_was_known_is_no_sign_of_death(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    read = coordination.leases

    async def slowly() -> list[LeaseRecord]:
        rows = await read()
        await trio.sleep(4)
        return rows

    coordination.leases = slowly  # type: ignore[method-assign]
    coordination.lose_answer = lambda what: what == "renew" and trio.current_time() < 30
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        await trio.sleep(60)
        assert lease.valid()
        nursery.cancel_scope.cancel()


async def test_doubt_is_said_once_and_so_is_its_end(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    with structlog.testing.capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            coordination.delay_s = 60.0
            await trio.sleep(40)
            coordination.delay_s = 0.01
            await trio.sleep(40)
            nursery.cancel_scope.cancel()
    said = [line["event"] for line in logged]
    assert said == [
        "lease in doubt: nothing is acknowledged until the store answers in time",
        "lease sure again",
    ]


async def test_draining_is_told_at_once(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        lease.drain()
        await trio.sleep(0.1)
        assert coordination.rows[lease.incarnation].draining
        nursery.cancel_scope.cancel()


async def test_another_process_keeps_the_lease_even_when_the_last_renewal_of_the_first_comes_late(
    autojump_clock: MockClock,
) -> None:
    coordination = MemoryCoordination()
    lease = make(coordination)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    late = lease._next()  # sent by the first process, and applied after its end
    state = lease.state()
    heir = Lease(
        coordination, node="n1", address="127.0.0.1:1", owns=True, protocol=1, lease_s=10.0, renew_s=2.0,
        clock=trio.current_time, incarnation=lease.incarnation,
    )  # fmt: skip
    assert not heir.valid()
    heir.resume(state)
    assert heir.valid(), "from the first moment"
    assert heir.remaining_s == lease.remaining_s
    assert await coordination.renew_lease(late, lease.record.nonce)
    async with trio.open_nursery() as nursery:
        await nursery.start(heir.run)
        for _ in range(30):
            await trio.sleep(1)
            assert heir.valid()
        assert len(coordination.rows) == 1
        assert coordination.rows[heir.incarnation].nonce == heir.record.nonce > late.nonce
        nursery.cancel_scope.cancel()
