"""The load of a run: users with devices on all nodes, who talk in groups."""

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import jwt
import trio

from bench.torture.cluster import TrialCluster
from bench.torture.device import Device
from gateway.check.recorder import Recorder

USERS: Final = 4
DEVICES: Final = 2
CONVERSATIONS: Final = 6
"""How many groups there are; all users are in the first, three of them in each other."""

PAUSE_S: Final = 0.2
"""Mean time between two messages of a device, seconds."""

TOKEN_TTL_S: Final = 24 * 3_600
"""How long tokens hold, seconds: beyond any clock that is turned."""


class Load:
    """Users, devices and conversations of one run, all of names that no other run has.

    Attributes:
        devices: those that talk.
        prober: in every conversation, and silent until it is asked to see whether they answer.
        conversations: their ids, once made.
        removed: devices whose user was removed from one of them.
    """

    def __init__(self, cluster: TrialCluster, recorder: Recorder, rng: random.Random) -> None:
        """Describe it; nothing is connected yet."""
        self._cluster = cluster
        self._run = secrets.token_hex(4)
        self.users = [f"{self._run}-user{number}" for number in range(1, USERS + 1)]
        names = [(user, f"d{number}") for user in self.users for number in range(1, DEVICES + 1)]
        self.devices = [
            Device(user, name, cluster.nodes, self.token, recorder, rng.randrange(2**32)) for user, name in names
        ]
        prober = f"{self._run}-prober"
        self.prober = Device(prober, "d1", cluster.nodes, self.token, recorder, rng.randrange(2**32))
        self.conversations: list[str] = []
        self.removed: list[Device] = []
        self._creators: list[Device] = []
        self._rng = rng
        self._sending = False

    @property
    def everybody(self) -> list[Device]:
        """All devices, the prober, too."""
        return [*self.devices, self.prober]

    def token(self, user: str) -> str:
        """A token for a user."""
        payload = {"sub": user, "aud": "tidegate", "exp": int(time.time()) + TOKEN_TTL_S}
        return jwt.encode(payload, self._cluster.secret, algorithm="HS256")

    async def connect(self, nursery: trio.Nursery) -> None:
        """Connect all devices, which stay connected in ``nursery``, and make the conversations."""
        async with trio.open_nursery() as connecting:
            for device in self.everybody:
                connecting.start_soon(nursery.start, device.run)
        for number in range(CONVERSATIONS):
            members = self.users if number == 0 else self._rng.sample(self.users, 3)
            creator = next(device for device in self.devices if device.user == members[0])
            others = [*members[1:], self.prober.user]
            made = await creator.create(others, f"{self._run}-{number}")
            self.conversations.append(made)
            self._creators.append(creator)
            for device in self.everybody:
                if device.user in (*members, self.prober.user):
                    device.conversations.append(made)

    async def remove_somebody(self) -> None:
        """The creator of the first conversation removes a user, who learns nothing more of it."""
        conversation, creator = self.conversations[0], self._creators[0]
        user = self._rng.choice([user for user in self.users if user != creator.user])
        for device in self.devices:
            if device.user == user:
                device.conversations.remove(conversation)
                self.removed.append(device)
        await creator.remove(conversation, user)

    @contextmanager
    def talking(self, nursery: trio.Nursery) -> Iterator[None]:
        """All devices send until the block is left; what is under way then still wants its answer."""
        self._sending = True
        for device in self.devices:
            nursery.start_soon(device.send_while, lambda: self._sending, PAUSE_S)
        try:
            yield
        finally:
            self._sending = False

    def unanswered(self) -> int:
        """Messages under way."""
        return sum(device.unanswered for device in self.everybody)

    def unheard(self) -> list[str]:
        """What was acknowledged to one device and has not reached another, in words."""
        acknowledged: dict[str, set[int]] = {}
        for device in self.everybody:
            for conversation, seqs in device.acknowledged.items():
                acknowledged.setdefault(conversation, set()).update(seqs)
        missing = []
        for device in self.everybody:
            for conversation in device.conversations:
                known = device.heard[conversation] | device.acknowledged[conversation]
                if left := acknowledged.get(conversation, set()) - known:
                    missing.append(f"{device.name} has not heard {sorted(left)[:5]} of {conversation}")
        return missing
