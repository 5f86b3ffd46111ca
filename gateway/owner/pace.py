"""How much may be appended to one conversation, by all its members together."""

from gateway.config import Settings
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.refusals import Refused
from protocol.errors import ErrorCode


class Pace:
    """Rate limit by GCRA (ITU-T I.371, "virtual scheduling"): one number per conversation, when its next one is due.

    It is the owner's to decide, who alone sees all that goes to a conversation. What one conversation may take is
    thereby bounded whatever the number of its senders: appends to it queue behind each other, and each costs writes to
    all of its members, while its neighbours have to get on. A conversation that was out of memory begins anew.
    """

    def __init__(self, settings: Settings, counters: OwnerCounters) -> None:
        self._counters = counters
        self._per_s_max = settings.conversation_sends_per_s_max
        self._interval_s = 1 / self._per_s_max if self._per_s_max else 0.0
        self._ahead_s = self._interval_s * (settings.conversation_burst_max - 1)

    def admit(self, conversation: Conversation, now_s: float) -> None:
        """Count one more append at ``now_s``, seconds of trio's clock. Raises Refused: too early."""
        if not self._interval_s:
            return
        due_s = conversation.due_s
        if due_s > now_s + self._ahead_s:
            self._counters.rate_limited += 1
            wait_ms = int((due_s - now_s - self._ahead_s) * 1000) + 1
            raise Refused(
                ErrorCode.RATE_LIMITED,
                f"this conversation takes {self._per_s_max:g} entries a second, from all its members together; "
                f"nothing was stored: repeat it with the same ids in {wait_ms} ms",
                wait_ms,
            )
        conversation.due_s = max(now_s, due_s) + self._interval_s
