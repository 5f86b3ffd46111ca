"""Getting in: a Cassandra that asks for a login and speaks TLS only."""

import msgspec
import pytest

from deploy.cassandra import launcher
from deploy.cassandra.launcher import CassandraCluster, CassandraOptions
from store.cassandra_session import Access, CannotUse, connect, create_keyspace, open_cluster
from store.interface import Unavailable
from tests.process.failing import fails

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def access(tmp_path_factory):
    if missing := launcher.what_is_missing():
        pytest.skip(missing)
    options = CassandraOptions(authentication=True, tls=True)
    with CassandraCluster(tmp_path_factory.mktemp("login"), options) as cluster:
        yield Access(
            tuple(cluster.addresses),
            cluster.port,
            user=cluster.user,
            password=cluster.password,
            tls_ca=str(cluster.certificate.certificate_path),
        )


def use(access: Access) -> None:
    cluster = open_cluster(access)
    try:
        create_keyspace(cluster, access, 1)
        connect(cluster, access)
    finally:
        cluster.shutdown()


def test_the_right_login_over_tls_gets_in(access):
    use(access)


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"user": "nobody"}, {"user": ""}])
def test_a_wrong_login_is_named(access, changes):
    with pytest.raises(CannotUse, match="set cassandra_user and cassandra_password"):
        use(msgspec.structs.replace(access, **changes))


def test_a_node_with_a_wrong_login_ends_with_what_to_set_and_shows_no_password(access):
    where = (
        "--cassandra-hosts",
        *access.hosts,
        "--cassandra-port",
        str(access.port),
        "--cassandra-tls-ca",
        access.tls_ca,
    )
    login = ("--cassandra-user", access.user, "--cassandra-password", "the wrong one of mine")
    code, line = fails("--store", "cassandra", "--auth-secret", "s" * 32, *where, *login)
    assert code == 1
    assert f"Cassandra refuses user {access.user!r}" in line
    assert "set cassandra_user and cassandra_password" in line
    assert "the wrong one of mine" not in line


def test_without_tls_nobody_answers(access):
    with pytest.raises(Unavailable, match="no Cassandra node answers"):
        use(msgspec.structs.replace(access, tls_ca=""))
