"""All metrics of a node, with the histograms that its parts observe."""

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from gateway.observe.collector_pauses import CollectorPauses
from gateway.observe.loop_stalls import LoopStalls
from gateway.observe.process import add_process_metrics
from gateway.observe.registry import MetricRegistry

if TYPE_CHECKING:
    from gateway.node import Node

DELIVERY_BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""From an fsync on a good disk to the age at which a slow consumer is closed."""

PAUSE_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""From a collection of young objects to what everybody notices."""

STALL_BOUNDS_S: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""From a slice of a fan-out or two to what other nodes nearly take for silence."""

COMMIT_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""From an fsync in memory to that of a disk which fails."""

COMMIT_BOUNDS_ENTRIES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Doubling, from a commit for one entry to those of a store that is behind."""

OWNER_COUNTERS: Final = {
    "sends": ("sends", "Send commands taken in hand, refused ones included."),
    "duplicates": ("duplicate_sends", "Repeats of a client_msg_id that were answered with their first seq."),
    "lookups": ("duplicate_lookups", "Repeats that memory could not answer, so that the store was asked."),
    "member_lookups": ("member_lookups", "Commands that waited until the store was asked who is in a channel."),
    "appended": ("entries_appended", "Entries that became durable."),
    "batches": ("append_batches", "Batches handed to the store."),
    "not_written": ("entries_not_written", "Entries that the store refused."),
    "unknown_outcomes": ("unknown_outcomes", "Appends whose outcome was unknown and that were repeated."),
    "unanswered": ("sends_unanswered", "Sends that were told OUTCOME_UNKNOWN because the store took too long."),
    "redelivered": ("entries_redelivered", "Entries delivered again because their send was repeated."),
    "loads": ("conversation_loads", "Conversations taken over from the store."),
    "created": ("conversations_created", "Conversations created."),
    "evicted": ("conversation_evictions", "Conversations dropped from memory to make room."),
    "overloaded": ("commands_overloaded", "Commands refused because too many waited."),
    "rate_limited": ("entries_rate_limited", "Entries refused because their conversation got too many."),
    "receipts": ("receipts", "Receipt commands that moved a pointer."),
    "receipts_saved": ("receipts_saved", "Receipt pointers written to the store."),
    "receipts_failed": ("receipts_failed", "Receipt pointers whose saving failed and is tried again."),
    "receipts_unpushed": ("receipts_unpushed", "Receipts not pushed: group too large, another's, or forgotten by now."),
    "typing_pushed": ("typing_pushed", "Typing pushes handed to the edge."),
    "typing_throttled": ("typing_throttled", "Typing commands dropped because they came too soon."),
    "typing_shed": ("typing_shed", "Typing commands dropped: the group is too large, or too many users type."),
}
"""Fields of ``OwnerCounters``: the metric's name, without prefix and ``_total``, and its meaning."""


class Metrics:
    """What a node tells of itself.

    The parts count in plain integers, which are read when somebody asks (``render``). What needs a distribution is
    observed here: deliveries, commits, pauses of the collector, stalls of the loop.
    """

    def __init__(self, node: "Node") -> None:
        self.registry = MetricRegistry()
        self.registry.info(
            "node", "Which node this is.", {"node": node.name, "version": version("tidegate"), "python": _python()}
        )
        self._delivery = self.registry.histogram(
            "delivery_seconds", "From the arrival of a send to the writes of its delivery.", DELIVERY_BOUNDS_S
        )
        self._commit_seconds = self.registry.histogram(
            "commit_seconds", "How long commits of the store took, their fsync included.", COMMIT_BOUNDS_S
        )
        self._commit_entries = self.registry.histogram(
            "commit_entries", "Entries that one commit made durable.", COMMIT_BOUNDS_ENTRIES
        )
        self._add_edge(node)
        self._add_owner(node)
        self._add_loop()
        add_process_metrics(self.registry)

    def observe_delivery(self, seconds: float, count: int = 1) -> None:
        """Note that ``count`` deliveries were written ``seconds`` after their oldest send arrived."""
        self._delivery.observe(seconds, count)

    def observe_commit(self, entries: int, seconds: float) -> None:
        """Note that one commit made so many entries durable, and how long it took."""
        self._commit_entries.observe(entries)
        self._commit_seconds.observe(seconds)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format. Call it in the trio thread."""
        return self.registry.render()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure loop and collector for ever. Cancelling ends that, and what was observed stays."""
        self._pauses.install()
        trio.lowlevel.add_instrument(self.stalls)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self.stalls)
            self._pauses.remove()

    def _add_edge(self, node: "Node") -> None:
        counter, gauge = self.registry.counter, self.registry.gauge
        gauge("connections", "Connections held, closing ones included.", lambda: node.table.count)
        gauge("users", "Users with a connection here.", lambda: len(node.hub.by_user))
        gauge("handshakes", "Handshakes in progress that needed a task.", lambda: node.listener.handshakes)
        gauge("send_queue_bytes", "Bytes in all send queues.", lambda: node.writer.bytes_queued)
        gauge("http_connections", "HTTP connections held.", lambda: node.http.connections)
        gauge(
            "users_leaving",
            "Watched users who left within the grace period of presence.",
            lambda: node.presences.leaving,
        )
        gauge("watched_users", "Users whose presence somebody here watches.", lambda: node.presences.watched)
        gauge("channels_followed", "Channels that somebody here follows.", lambda: len(node.hub.followers))
        gauge("tasks", "Tasks of the event loop.", lambda: trio.lowlevel.current_statistics().tasks_living)
        counter("deliveries", "Writes of a delivery to a connection.", lambda: node.hub.fanout.deliveries)
        counter("replies", "Replies to commands of connections.", lambda: node.hub.replies)
        counter(
            "signals_shed", "Receipts, typing and presence not sent to slow consumers.", lambda: node.hub.signals_shed
        )
        counter("slow_consumers", "Connections closed for being too slow to read.", lambda: node.writer.slow_consumers)
        counter(
            "commands_rate_limited",
            "Commands, pings and HTTP requests refused for their number.",
            lambda: node.admission.refused,
        )
        counter("connections_opened", "Connections opened.", lambda: node.sessions.opened)
        counter("frames", "Frames received on connections.", lambda: node.parking.frames)
        counter("syncs", "Syncs answered.", lambda: node.catchup.syncs)
        counter("syncs_resumed", "Syncs that left no gap to be filled by history.", lambda: node.catchup.resumed)
        counter("conversation_lists", "Conversation lists answered.", lambda: node.catchup.lists)
        counter(
            "sends_congested", "Sends refused: too many deliveries of theirs wait.", lambda: node.commands.overloaded
        )
        counter("commands_invalid", "Frames refused for their form.", lambda: node.commands.invalid)
        counter(
            "proxy_headers_refused",
            "Connections of load balancers without an acceptable PROXY protocol header.",
            lambda: node.entrance.headers_refused if node.entrance else 0,
        )
        counter(
            "tls_handshakes_failed",
            "TLS handshakes that failed.",
            lambda: node.entrance.tls_failed if node.entrance else 0,
        )
        counter("http_refused", "HTTP connections turned away.", lambda: node.http.refused)
        counter(
            "http_gave_way",
            "HTTP connections closed because their clients were idle or slow and others needed the place.",
            lambda: node.http.gave_way,
        )
        self.registry.counters(
            "closes", "Connections that this node closed, by close code.", "code", lambda: node.writer.closed_by_code
        )
        self.registry.counters(
            "http_answers", "Answers to HTTP requests, by status.", "status", lambda: node.api.answered
        )
        self.registry.counters(
            "handshakes_refused", "Handshakes refused, by HTTP status.", "status", lambda: node.listener.refused
        )

    def _add_owner(self, node: "Node") -> None:
        gauge = self.registry.gauge
        gauge("conversations_loaded", "Conversations in memory.", lambda: node.owner.conversations_loaded)
        gauge("commands_waiting", "Commands that wait for the store.", lambda: node.owner.backlog.waiting)
        for field, (name, meaning) in OWNER_COUNTERS.items():
            self.registry.counter(name, meaning, lambda field=field: getattr(node.owner.counters, field))  # type: ignore[misc]

    def _add_loop(self) -> None:
        registry = self.registry
        self.stalls = LoopStalls(
            registry.histogram(
                "loop_stall_seconds", "Passes of the event loop of a millisecond or more.", STALL_BOUNDS_S
            )
        )
        self._pauses = CollectorPauses(
            registry.histogram("gc_pause_seconds", "Pauses by Python's garbage collector.", PAUSE_BOUNDS_S)
        )
        registry.gauge("loop_stall_seconds_max", "Longest pass of the event loop ever.", lambda: self.stalls.longest_s)
        registry.gauge(
            "loop_stall_seconds_recent_max", "Longest pass of the last minute.", self.stalls.recent_longest_s
        )
        registry.counter("loop_busy_seconds", "Time the event loop did not wait.", lambda: self.stalls.busy_s)
        registry.counter("loop_passes", "Passes of the event loop.", lambda: self.stalls.passes)
        registry.gauge("gc_pause_seconds_max", "Longest pause by the collector ever.", lambda: self._pauses.longest_s)
        registry.counters(
            "gc_collections", "Collections by generation.", "generation", lambda: self._pauses.collections
        )


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"
