"""How Cassandra is reached, as far as that needs none."""

import pytest

from store.cassandra_session import Access, open_cluster
from store.interface import Unavailable


def test_hosts_without_an_address_are_something_to_wait_for():
    """A name service may be away for a moment, as everything else may."""
    with pytest.raises(Unavailable, match="no address is known of not a host, nor this: see cassandra_hosts"):
        open_cluster(Access(hosts=("not a host", "nor this")))
