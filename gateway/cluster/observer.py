"""Looking at a cluster from outside: reads leases and slots, and asks each node how it is."""

from collections.abc import Iterable
from typing import Final

import trio

from gateway.cluster.overview import NoAnswer, Overview, overview
from gateway.cluster.questions import Asking, AskStatus, Declined, NodeStatus, NotAnswered
from store.coordination import Coordination, LeaseRecord

RENEWAL_MARGIN_S: Final = 1.0
"""Seconds beyond the time from one renewal to the next after which a node that tells nothing is looked at again."""


class Observer:
    """Looks at a cluster."""

    def __init__(self, coordination: Coordination, keyspace: str, key: bytes | None, renew_s: float) -> None:
        """Describe it.

        Args:
            coordination: where leases and slots are.
            keyspace: its name, to be shown.
            key: of the cluster's secret; None: nodes are not asked.
            renew_s: how often nodes renew their leases, seconds.
        """
        self._coordination = coordination
        self._keyspace = keyspace
        self._key = key
        self._renew_s = renew_s

    async def look(self) -> Overview:
        """How things are now. Takes some seconds when a node does not tell. Raises Unavailable.

        Such a node is looked at again, to see whether it renews its lease; all that do, and who has come meanwhile,
        are asked again then.
        """
        leases = await self._coordination.leases()
        seen_s = trio.current_time()
        answers = await self._ask(leases)
        still_s: dict[str, float] = {}
        if any(row.alive and not isinstance(answers.get(row.incarnation), NodeStatus) for row in leases):
            await trio.sleep(self._renew_s + RENEWAL_MARGIN_S)
            before = {row.incarnation: row.nonce for row in leases}
            lasted_s = round(trio.current_time() - seen_s, 1)
            leases = await self._coordination.leases()
            still_s = {
                row.incarnation: lasted_s for row in leases if row.alive and before.get(row.incarnation) == row.nonce
            }
            answers |= await self._ask(row for row in leases if row.incarnation not in still_s)
        table = await self._coordination.slot_table()
        return overview(self._keyspace, leases, table, answers, still_s, self._renew_s)

    async def _ask(self, rows: Iterable[LeaseRecord]) -> dict[str, NodeStatus | NoAnswer]:
        """What living nodes tell, or why they do not; nothing without a secret to ask them with."""
        answers: dict[str, NodeStatus | NoAnswer] = {}
        if self._key is not None:
            async with trio.open_nursery() as nursery:
                for row in rows:
                    if row.alive:
                        nursery.start_soon(self._ask_one, row, self._key, answers)
        return answers

    @staticmethod
    async def _ask_one(row: LeaseRecord, key: bytes, answers: dict[str, NodeStatus | NoAnswer]) -> None:
        try:
            async with Asking(row.address, key, row.incarnation) as asking:
                answer = await asking.ask(AskStatus())
        except NotAnswered as error:
            answers[row.incarnation] = NoAnswer(str(error), error.refused)
        else:
            declined = answer.reason if isinstance(answer, Declined) else "its answer is to another question"
            answers[row.incarnation] = answer if isinstance(answer, NodeStatus) else NoAnswer(declined, refused=True)
