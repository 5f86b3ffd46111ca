import pytest

from gateway.cluster.redis_url import RedisAddress, UrlError, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress("", (("localhost", 6379),))),
        ("redis://localhost:7000/3", RedisAddress("", (("localhost", 7000),), db=3)),
        ("redis://[::1]:7000", RedisAddress("", (("::1", 7000),))),
        ("redis://:p%40ss%2Fword@h", RedisAddress("", (("h", 6379),), password="p@ss/word")),
        ("redis://ann:secret@h", RedisAddress("", (("h", 6379),), username="ann", password="secret")),
        (
            "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false",
            RedisAddress("", (("h", 6379),), tls=True, tls_files={"ssl_ca_certs": "/etc/ca.pem"}, check_hostname=False),
        ),
        (
            "redis+sentinel://:pw@a,b:7/main/2?sentinel_password=other",
            RedisAddress(
                "sentinel", (("a", 26379), ("b", 7)), service="main", db=2, password="pw", sentinel_password="other"
            ),
        ),
        (
            "redis+sentinel://a/main?sentinel_password=p@ss",
            RedisAddress("sentinel", (("a", 26379),), service="main", sentinel_password="p@ss"),
        ),
        ("rediss+cluster://a:1,b:2", RedisAddress("cluster", (("a", 1), ("b", 2)), tls=True)),
    ],
)
def test_what_a_url_says(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h", "begins with 'http', allowed are redis, rediss"),
        ("redis+ring://h", "begins with 'redis\\+ring', allowed are"),
        ("localhost:6379", "allowed are redis, rediss"),
        ("redis://", "where HOST:PORT belongs"),
        ("redis://:secret@h:port", "'h:port' where HOST:PORT belongs"),
        ("redis://a,b", "names several hosts, which needs redis\\+sentinel:// or redis\\+cluster://"),
        ("redis://h/main", "ends with 'main' where the number of a database belongs"),
        ("redis://h?timeout=3", "unknown option 'timeout'; this kind of URL takes none"),
        ("rediss://h?ssl=1", "unknown option 'ssl'; allowed are ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname=maybe; allowed are true and false"),
        ("redis+sentinel://a", "lacks the service's name"),
        ("redis+cluster://a/1", "names database 1, but a Redis Cluster has only 0"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str, says: str) -> None:
    with pytest.raises(UrlError, match=says) as caught:
        parse_redis_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:begun/secret@h:6379/0",
        "redis://:begun/secret@h:6379",
        "redis://:secret/begun@h",
        "redis://:secret?begun@h",
        "redis://:begun?secret@h",
        "redis://:secret#begun@h",
        "redis://:begun[secret]@h",
        "redis://:[secret@h",
        "redis://:secret\N{ACCOUNT OF}@h",
    ],
)
def test_a_password_that_is_not_percent_encoded_is_not_shown_in_part(url: str) -> None:
    with pytest.raises(UrlError, match="percent-encoded") as caught:
        parse_redis_url(url)
    assert "secret" not in str(caught.value)
    assert "begun" not in str(caught.value)


def test_no_password_is_shown() -> None:
    shown = parse_redis_url("rediss+sentinel://ann:secret@a,b:7/main/2?sentinel_password=secret")
    assert str(shown) == "rediss+sentinel://a:26379,b:7/main/2"
    assert "secret" not in repr(shown)
