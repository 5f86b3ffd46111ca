"""What fits a page of entries."""

from collections.abc import Sequence

from protocol import limits


def fit(entries: Sequence[bytes], newest: bool, bytes_max: int = limits.PAGE_BYTES_MAX) -> Sequence[bytes]:
    """As many of the entries as a page may hold, at least one: the newest, or the oldest of them."""
    size = 0
    for count, encoded in enumerate(reversed(entries) if newest else entries):
        size += len(encoded)
        if size > bytes_max and count:
            return entries[-count:] if newest else entries[:count]
    return entries
