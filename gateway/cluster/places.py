"""Where the members of large groups are, kept from one entry to the next.

An entry of a group of ten thousand would otherwise cost ten thousand look-ups. What was found is kept as it is; who is
reported as changed is noted once, for all groups, and each group looks at the notes when it is asked for: so an entry
costs what has changed since the last one, and a change costs the same however many groups there are.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Final

GROUP_MIN: Final = 64
"""Users from which on a look-up is kept: below, it costs less than the keeping."""

GROUPED_USERS_MAX: Final = 200_000
"""Users in all groups that are kept together, as many as are cached one by one: some 15 MB."""

CHANGES_MAX: Final = 4_096
"""Changes noted; a group that was not asked for meanwhile is looked up as a whole again."""


class Places(dict[str, tuple[str, ...]]):
    """Incarnations by user, as found once: nobody changes it afterwards."""

    @cached_property
    def together(self) -> Mapping[tuple[str, ...], list[str]]:
        """Users by the incarnations that they share. Of a large group most are where many others are."""
        return grouped(self)

    def changed(self, news: Mapping[str, tuple[str, ...]]) -> "Places":
        """The same with some users elsewhere."""
        moved = {user: incarnations for user, incarnations in news.items() if self[user] != incarnations}
        if not moved:
            return self
        places = Places(self)
        places.update(moved)
        if "together" in self.__dict__:
            together = dict(self.together)
            for incarnations in {self[user] for user in moved}:
                together[incarnations] = [user for user in together[incarnations] if user not in moved]
                if not together[incarnations]:
                    del together[incarnations]
            for incarnations, users in grouped(moved).items():
                together[incarnations] = [*together.get(incarnations, ()), *users]
            places.__dict__["together"] = together
        return places


def grouped(places: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    """Users by the incarnations that they share."""
    together: dict[tuple[str, ...], list[str]] = {}
    for user, incarnations in places.items():
        if incarnations in together:
            together[incarnations].append(user)
        else:
            together[incarnations] = [user]
    return together


def is_group(users: Collection[str]) -> bool:
    """Whether what is found of them is worth keeping, and can be: nobody changes a tuple."""
    return type(users) is tuple and len(users) >= GROUP_MIN


class _Group:
    """A group that was found, and the number of changes noted when its look-up began."""

    __slots__ = ("changes", "places", "users")

    def __init__(self, users: Collection[str], places: Places, changes: int) -> None:
        self.users = users  # kept, so that no other object gets its identity
        self.places = places
        self.changes = changes


class Groups:
    """The groups that are kept, by the identity of the tuple of their users, which nobody can change.

    Attributes:
        changes: changes noted, ever: what a look-up that begins now has to remember.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._noted: list[str] = []
        self._noted_from = 0  # number of the first of them
        self._groups: dict[int, _Group] = {}
        self._users = 0

    def find(self, users: Collection[str]) -> tuple[Places, set[str]] | None:
        """Where a group was, and which of its users have to be looked up again; None if it is not kept."""
        group = self._groups.get(id(users))
        if group is None:
            return None
        if group.changes < self._noted_from:
            self._drop(id(users))
            return None
        changed = group.places.keys() & set(self._noted[group.changes - self._noted_from :])
        if not changed:
            group.changes = self.changes
        return group.places, changed

    def keep(self, users: Collection[str], places: Places, changes: int) -> None:
        """Keep what a look-up found that began when so many ``changes`` were noted, if its users are a large group."""
        if not is_group(users) or changes < self._noted_from:
            return
        self._drop(id(users))
        self._groups[id(users)] = _Group(users, places, changes)
        self._users += len(users)
        while self._users > GROUPED_USERS_MAX:
            self._drop(next(iter(self._groups)))

    def note(self, users: Iterable[str]) -> None:
        """Users may have moved."""
        if not self._groups:
            self.forget()  # nobody has to look at it; a look-up under way does not count
            return
        before = len(self._noted)
        self._noted.extend(users)
        self.changes += len(self._noted) - before
        if len(self._noted) > CHANGES_MAX:
            old = len(self._noted) - CHANGES_MAX // 2
            del self._noted[:old]
            self._noted_from += old

    def forget(self) -> None:
        """Everybody may have moved."""
        self.changes += 1
        self._noted.clear()
        self._noted_from = self.changes
        self._groups.clear()
        self._users = 0

    def _drop(self, identity: int) -> None:
        group = self._groups.pop(identity, None)
        if group is not None:
            self._users -= len(group.users)
