"""A tiny honest chat service that records what its users see: the source of good histories, each ready to be spoilt.

One conversation "c". Everything follows from a list of small numbers, so that hypothesis can shrink it.
"""

from collections.abc import Sequence

from gateway.check.history import Record, SeenEntry
from tests.gateway.check.histories import Builder

USERS = ("alice", "bob", "carol")


class Simulation:
    """Alice creates the conversation with bob and carol; only carol is ever removed and added again."""

    def __init__(self) -> None:
        self.history = Builder()
        self.log: list[SeenEntry] = []
        self.members = set(USERS)
        self.connections = dict.fromkeys(USERS, 1)
        self.cursors = dict.fromkeys(USERS, 0)
        self.names = 0
        for user in USERS:
            self._connect(user)
        call = self._invoke("create", "alice", "new", users=USERS)
        self._append("alice", SeenEntry(1, "alice", "new", kind="created", users=USERS), call, "create")

    def run(self, choices: Sequence[tuple[int, int]]) -> list[Record]:
        for action, who in choices:
            user = USERS[who % len(USERS)]
            (self._send, self._lost_answer, self._read, self._reconnect, self._membership, self._refused)[action % 6](
                user
            )
        if "carol" not in self.members:
            self._membership("carol")
        self.history.record("info", "quiet", "harness")
        self.history.read("bob", *self.log, final=True)
        return self.history.parsed()

    def _send(self, user: str) -> None:
        if user in self.members:
            call, entry = self._begin(user)
            self._append(user, entry, call, "send")

    def _lost_answer(self, user: str) -> None:
        """Stored, but the answer is lost with the connection; sent again on the next one, and answered as a repeat."""
        if user not in self.members:
            return
        call, entry = self._begin(user)
        self._append(user, entry, None, "send")
        self.history.record("info", "send", user, call=call)
        self._reconnect(user)
        again = self._invoke("send", user, entry.client_msg_id, payload=entry.payload, attempt=2)
        self.history.record("ok", "send", user, call=again, seq=entry.seq, duplicate=True)

    def _refused(self, user: str) -> None:
        call, _ = self._begin(user)
        self.history.record("fail", "send", user, call=call, error="TOO_LONG")

    def _read(self, user: str) -> None:
        if user in self.members:
            self.history.read(user, *self.log)

    def _reconnect(self, user: str) -> None:
        self.history.record("info", "disconnect", user, connection=self._connection(user))
        self.connections[user] += 1
        self._connect(user)
        if user not in self.members:
            return
        on = {"user": user, "connection": self._connection(user), "conversation": "c"}
        cursor, head = self.cursors[user], len(self.log)
        resume = self.history.invoke("resume", user, cursor=cursor, **on)
        page = self.history.invoke("read", user, **on)
        news = tuple(self.log[cursor:])
        span = {"first_seq": cursor + 1, "last_seq": head, "head_seq": head}
        self.history.record("ok", "read", user, call=page, entries=news, **span)
        self.history.record("ok", "resume", user, call=resume, head_seq=head)
        self.cursors[user] = head

    def _membership(self, user: str) -> None:
        del user
        self.names += 1
        op, kind = ("remove", "removed") if "carol" in self.members else ("add", "added")
        name = f"{op}-{self.names}"
        call = self._invoke(op, "alice", name, users=("carol",))
        if op == "add":
            self.members.add("carol")
        self._append("alice", SeenEntry(len(self.log) + 1, "alice", name, kind=kind, users=("carol",)), call, op)
        if op == "remove":
            self.members.discard("carol")

    def _begin(self, user: str) -> tuple[int, SeenEntry]:
        self.names += 1
        name = f"m{self.names}"
        entry = SeenEntry(len(self.log) + 1, user, name, f"p-{name}")
        return self._invoke("send", user, name, payload=entry.payload), entry

    def _append(self, sender: str, entry: SeenEntry, call: int | None, op: str) -> None:
        self.log.append(entry)
        if call is not None:
            self.history.record("ok", op, sender, call=call, conversation="c", seq=entry.seq)
        for user in sorted(self.members - {sender}):
            self.history.push(user, entry, self._connection(user))
        for user in self.members:
            if user != sender or call is not None:
                self.cursors[user] = entry.seq

    def _invoke(self, op: str, user: str, name: str, **fields: object) -> int:
        conversation = "" if op == "create" else "c"
        return self.history.invoke(
            op,
            user,
            user=user,
            conversation=conversation,
            client_msg_id=name,
            connection=self._connection(user),
            **fields,
        )

    def _connect(self, user: str) -> None:
        self.history.record("ok", "connect", user, user=user, connection=self._connection(user))

    def _connection(self, user: str) -> str:
        return f"{user}-{self.connections[user]}"
