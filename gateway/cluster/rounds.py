"""Which rounds of forwarded commands an owner has given back: all that comes of the same round goes back, too.

So the commands of a session stay in order when a slot moves: see ``gateway.cluster.routing``.
"""

from collections.abc import Collection, Sequence

RoundsState = Sequence[tuple[str, int, int, int]]
"""Sender, slot, newest round that came, newest round that was refused; of each."""


class Rounds:
    """The newest round of each sender and slot, and the newest that was refused."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], int] = {}
        self._refused: dict[tuple[str, int], int] = {}

    def admit(self, sender: str, slot: int, number: int) -> bool:
        """Note a command of a round; whether it is to be looked at. Round 0 is none, and always is."""
        key = (sender, slot)
        if number and number <= self._refused.get(key, 0):
            return False
        self._newest[key] = max(number, self._newest.get(key, 0))
        return True

    def refuse(self, sender: str, slot: int) -> None:
        """A command was given back: no more of its round is taken."""
        key = (sender, slot)
        self._refused[key] = self._newest.get(key, 0)

    def forget(self, incarnations: Collection[str]) -> None:
        """Keep nothing of nodes but these."""
        self._newest = {key: value for key, value in self._newest.items() if key[0] in incarnations}
        self._refused = {key: value for key, value in self._refused.items() if key[0] in incarnations}

    def state(self) -> RoundsState:
        """All of it, for a process that goes on with this node's name."""
        return [(*key, newest, self._refused.get(key, 0)) for key, newest in self._newest.items()]

    def restore(self, state: RoundsState) -> None:
        """Begin with what such a process left."""
        self._newest = {(sender, slot): newest for sender, slot, newest, _ in state}
        self._refused = {(sender, slot): refused for sender, slot, _, refused in state if refused}
