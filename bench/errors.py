"""What a benchmark says when it cannot measure."""


class BenchError(Exception):
    """A figure could not be measured; the message says why and what to do. Never answered with a made-up figure."""


class PeerMissing(BenchError):
    """A peer is not installed; its figures are left out and the report says so."""
