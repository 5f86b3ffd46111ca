"""Live upgrade: a node hands its sockets, with all that it knows of their connections, to a new program.

No client notices more than a short pause. ``predecessor`` is the process that hands over, ``successor`` the new one;
they speak over a pair of Unix sockets (``channel``, ``messages``). The states of an upgrade, as the predecessor sees
them:

| state | what happens | until, or at most | undone by |
|---|---|---|---|
| idle | the node serves | SIGUSR2, ``tidegate upgrade`` | |
| starting | the new program checks settings and store; the node serves | Ready, START_TIMEOUT_S | killing it |
| settling | nobody is accepted; HTTP and handshakes finish or are put off | SETTLE_S | accepting |
| quieting | nothing is read; what was read is answered, delivered, saved | QUIET_TIMEOUT_S | reading |
| handing over | the loop stands still; sockets, state, lock go over | Taken, stand_still_max_s | keeping everything |
| gone | the process ends with exit code 0 | | nothing |

The point of no return is one message, Taken. The successor sends it when it has everything and before it reads or
writes a byte on a connection or in the store. As long as it has not been sent, the successor can be ended without a
trace, and the predecessor still has all its descriptors: it goes on as if nothing had happened. When it was sent, the
predecessor touches nothing any more. It is therefore never the predecessor's patience that decides: it ends a
successor that takes too long, and only when that process is dead it looks whether the message is there.

What clients send meanwhile stays in the kernel's buffers of their sockets; who connects waits in the listening
socket's queue, which both processes share.

What the right to write is, and how it goes over, is for the ``Estate`` and the ``Heir``: the store's lock, or the life
of one incarnation in a cluster.
"""

from typing import Final

PREDECESSOR_VARIABLE: Final = "TIDEGATE_PREDECESSOR"
"""Environment variable in which a successor finds the descriptor of its end of the channel."""

LEFT_VARIABLE: Final = "TIDEGATE_LEFT"
"""Environment variable in which a supervisor of several nodes finds what the program before it in the same process has
left to it (see ``gateway.process_succession``)."""
