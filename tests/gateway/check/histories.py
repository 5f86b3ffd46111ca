"""Builds small histories by hand, a line a thing that happened."""

from typing import Any

from msgspec.structs import replace

from gateway.broker import channel_id_of
from gateway.check.checker import check
from gateway.check.history import Record, SeenEntry, encode, parse


class Builder:
    """Records in the order of the calls; every record comes one nanosecond after the one before."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._calls = 0

    def record(self, type: str, op: str, process: str, **fields: Any) -> None:
        self.records.append(Record(time=len(self.records), type=type, op=op, process=process, **fields))

    def invoke(self, op: str, process: str, **fields: Any) -> int:
        self._calls += 1
        self.record("invoke", op, process, call=self._calls, **fields)
        return self._calls

    def send(
        self, user: str, name: str, seq: int | None, *, end: str = "ok", epoch: int | None = None, **more: Any
    ) -> None:
        """A message of conversation c, ended at once; the connection is the user's first."""
        fields = {"user": user, "conversation": "c", "client_msg_id": name, "payload": f"p-{name}"}
        call = self.invoke("send", user, **(fields | {"connection": f"{user}-1"} | more))
        self.record(end, "send", user, call=call, seq=seq, epoch=epoch)

    def create(self, creator: str, *members: str) -> None:
        users = (creator, *members)
        call = self.invoke("create", creator, user=creator, client_msg_id="new", users=users, connection=f"{creator}-1")
        self.record("ok", "create", creator, call=call, conversation="c", seq=1)

    def change(self, op: str, user: str, name: str, seq: int, *users: str) -> None:
        fields = {"user": user, "conversation": "c", "client_msg_id": name, "users": users}
        call = self.invoke(op, user, connection=f"{user}-1", **fields)
        self.record("ok", op, user, call=call, seq=seq)

    def push(self, user: str, entry: SeenEntry, connection: str = "") -> None:
        connection = connection or f"{user}-1"
        self.record("ok", "push", user, user=user, connection=connection, conversation="c", entry=entry)

    def deliver(self, user: str, entry: SeenEntry) -> None:
        self.record("ok", "deliver", user, user=user, conversation="c", entry=entry)

    def read(self, user: str, *entries: SeenEntry, head: int | None = None, **fields: Any) -> None:
        """A read from seq 1 to its last entry."""
        call = self.invoke("read", user, user=user, conversation="c", **fields)
        last = max((entry.seq for entry in entries), default=0)
        head = last if head is None else head
        self.record("ok", "read", user, call=call, entries=entries, first_seq=1, last_seq=last, head_seq=head)

    def page(self, user: str, *entries: SeenEntry, head: int | None = None) -> None:
        """A read of just these entries, which end at the head unless another one is named."""
        call = self.invoke("read", user, user=user, conversation="c")
        first, last = entries[0].seq, entries[-1].seq
        span = {"first_seq": first, "last_seq": last, "head_seq": last if head is None else head}
        self.record("ok", "read", user, call=call, entries=entries, **span)

    def in_channel(self) -> None:
        """Let the conversation be a channel, which is told by its id."""
        self.records = [
            replace(record, conversation=channel_id_of(24 * "-")) if record.conversation == "c" else record
            for record in self.records
        ]

    def parsed(self) -> list[Record]:
        """As a checker gets them: through the file format."""
        return parse(encode(record) for record in self.records)


def created(*users: str) -> SeenEntry:
    return SeenEntry(1, users[0], "new", kind="created", users=users)


def message(seq: int, user: str, name: str, **fields: Any) -> SeenEntry:
    return SeenEntry(seq, user, name, f"p-{name}", **fields)


A, B, C = "alice", "bob", "carol"
FIRST = created(A, B)


def chat() -> Builder:
    """Conversation c of alice and bob, created at seq 1, both connected."""
    history = Builder()
    history.record("ok", "connect", A, user=A, connection="alice-1")
    history.record("ok", "connect", B, user=B, connection="bob-1")
    history.create(A, B)
    return history


def resume(history: Builder, cursor: int, head: int, *read: SeenEntry) -> None:
    history.record("ok", "connect", B, user=B, connection="bob-2")
    call = history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=cursor)
    fields = {"user": B, "connection": "bob-2", "conversation": "c"}
    page = history.invoke("read", B, **fields)
    span = {"first_seq": read[0].seq, "last_seq": read[-1].seq, "head_seq": head} if read else {}
    span = span or {"first_seq": head + 1, "last_seq": head, "head_seq": head}
    history.record("ok", "read", B, call=page, entries=read, **span)
    history.record("ok", "resume", B, call=call, head_seq=head)


def resuming(history: Builder) -> int:
    history.record("ok", "connect", B, user=B, connection="bob-2")
    return history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=1)


def synced(history: Builder, call: int, first: int, last: int, *entries: SeenEntry) -> None:
    page = history.invoke("read", B, user=B, connection="bob-2", conversation="c")
    history.record("ok", "read", B, call=page, entries=entries, first_seq=first, last_seq=last, head_seq=last)
    history.record("ok", "resume", B, call=call, head_seq=last)


def three(history: Builder) -> None:
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)


def again(history: Builder) -> None:
    """Alice repeats m, which is pushed once more."""
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", attempt=2)
    history.push(B, message(2, A, "m"), "bob-2")
    history.record("ok", "send", A, call=call, seq=2, duplicate=True, connection="alice-1")


def removed_and_quiet() -> Builder:
    """Bob got seq 2 and his removal at seq 3; then all was quiet."""
    history = chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    history.change("remove", A, "out", 3, B)
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    history.record("info", "quiet", "harness")
    return history


def told_again_of_stays() -> Builder:
    """Bob was in, out and in again, and came back; all that was pushed to him again."""
    history = chat()
    history.record("info", "disconnect", B, connection="bob-1")
    for name, op, seq in (("out", "remove", 2), ("in", "add", 4), ("out-2", "remove", 6)):
        history.change(op, A, name, seq, B)
        history.send(A, f"m{seq}", seq + 1)
    history.record("ok", "connect", B, user=B, connection="bob-2")
    for name, kind, seq in (("in", "added", 4), ("out-2", "removed", 6)):
        history.push(B, SeenEntry(seq, A, name, kind=kind, users=(B,)), "bob-2")
    history.record("info", "quiet", "harness")
    history.push(B, SeenEntry(4, A, "in", kind="added", users=(B,)), "bob-2")
    return history


def expect(history: Builder, *names: str) -> None:
    report = check(history.parsed())
    assert report.names() == set(names), report.as_text()
