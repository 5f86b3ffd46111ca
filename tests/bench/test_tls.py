"""What TLS costs is measured on two real nodes; here with a small crowd, only to see that the figures are figures."""

import pytest

from bench.tls import measure

pytestmark = pytest.mark.process


def test_tls_costs_memory_and_time_and_plain_connections_next_to_none() -> None:
    costs = measure(150)
    assert costs["tls"].user_bytes > 5_000
    assert costs["plain"].user_bytes < costs["tls"].user_bytes
    assert costs["tls"].connect_cpu_us > 0
