"""Where Redis is, as the setting ``redis_url`` says it.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]             one Redis
    redis+sentinel://…@HOST[:PORT],HOST[:PORT]/SERVICE[/DB]  whichever is primary, as sentinels say
    redis+cluster://…@HOST[:PORT],HOST[:PORT]              the shard of a Redis Cluster that holds tidegate's keys

``rediss`` instead of ``redis`` speaks TLS. Options follow a question mark: ``ssl_ca_certs=FILE`` and its like, and for
sentinels that ask for a password of their own, ``sentinel_password``. Special characters are percent-encoded.
"""

from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_KINDS: Final = ("", "sentinel", "cluster")
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


_ENCODE: Final = (
    "in user, password and options the characters / ? # [ ] @ % have to be percent-encoded: %2F %3F %23 %5B %5D %40 %25"
)


class UrlError(ValueError):
    """The URL cannot be used; the text says why, without the password."""


class RedisAddress(Struct, frozen=True):
    """A parsed URL.

    Attributes:
        kind: "" for one Redis, else "sentinel" or "cluster".
        hosts: addresses to ask, in the order given.
        service: what the sentinels call the primary.
        db: number of the database.
        username, password: of Redis; empty for none.
        sentinel_username, sentinel_password: of the sentinels; empty for none.
        tls: whether TLS is spoken, with sentinels too.
        tls_files: ssl_ca_certs, ssl_certfile, ssl_keyfile, as given.
        check_hostname: whether certificates have to name the host.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    db: int = 0
    username: str = ""
    password: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    tls: bool = False
    tls_files: dict[str, str] = {}
    check_hostname: bool = True

    def __repr__(self) -> str:
        """Without passwords."""
        return f"RedisAddress({self})"

    def __str__(self) -> str:
        scheme = ("rediss" if self.tls else "redis") + (f"+{self.kind}" if self.kind else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = f"/{self.service}/{self.db}" if self.service else f"/{self.db}"
        return f"{scheme}://{hosts}{path}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read the setting. Raises UrlError."""
    try:
        parts = urlsplit(url)
    except ValueError:  # which may say what it found, a password included
        raise UrlError(f"redis_url cannot be read; {_ENCODE}") from None
    if "@" in parts.path + parts.fragment:
        raise _broken_off()
    base, _, kind = parts.scheme.partition("+")
    if base not in ("redis", "rediss") or kind not in _KINDS:
        raise UrlError(
            f"redis_url begins with {parts.scheme!r}, allowed are redis, rediss (TLS), and these with +sentinel or "
            "+cluster behind: for example redis://127.0.0.1:6379/0"
        )
    credentials, _, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    tls = base == "rediss"
    check_hostname, files, sentinel = _options(parts, tls, kind)
    service, db = _path(parts.path, kind)
    hosts = tuple(_place(place, SENTINEL_PORT if kind == "sentinel" else PORT) for place in places.split(","))
    if not kind and len(hosts) > 1:
        raise UrlError("redis_url names several hosts, which needs redis+sentinel:// or redis+cluster://")
    return RedisAddress(
        kind=kind,
        hosts=hosts,
        service=service,
        db=db,
        username=unquote(username),
        password=unquote(password),
        tls=tls,
        tls_files=files,
        check_hostname=check_hostname,
        **sentinel,
    )


def _broken_off() -> UrlError:
    """Hosts seem to come behind where they would end: nothing of that may be shown, as it may be of a password."""
    return UrlError(f"redis_url has a '@' behind its hosts; {_ENCODE}")


def _options(parts: SplitResult, tls: bool, kind: str) -> tuple[bool, dict[str, str], dict[str, str]]:
    """Whether certificates have to name the host, TLS files, and the options of sentinels."""
    allowed: tuple[str, ...] = (*_TLS_FILES, "ssl_check_hostname") if tls else ()
    allowed += _SENTINEL_OPTIONS if kind == "sentinel" else ()
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in allowed:
            if "@" in parts.query and "@" not in parts.netloc:
                raise _broken_off()
            known = f"allowed are {', '.join(allowed)}" if allowed else "this kind of URL takes none"
            raise UrlError(f"redis_url has an unknown option {name!r}; {known}")
    check = given.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise UrlError(f"redis_url has ssl_check_hostname={check}; allowed are true and false")
    files: dict[str, str] = {name: given[name] for name in _TLS_FILES if name in given}
    sentinel: dict[str, str] = {name: given[name] for name in _SENTINEL_OPTIONS if name in given}
    return check == "true", files, sentinel


def _path(path: str, kind: str) -> tuple[str, int]:
    """Service and number of the database."""
    pieces = [unquote(piece) for piece in path.split("/") if piece]
    service = ""
    if kind == "sentinel":
        if not pieces:
            raise UrlError(
                "redis_url lacks the service's name behind the hosts: redis+sentinel://HOST:26379/SERVICE, "
                "the name that the sentinels monitor"
            )
        service = pieces.pop(0)
    if not pieces:
        return service, 0
    if len(pieces) > 1 or not pieces[0].isdecimal():
        raise UrlError(f"redis_url ends with {'/'.join(pieces)!r} where the number of a database belongs, such as 0")
    if kind == "cluster" and pieces[0] != "0":
        raise UrlError(f"redis_url names database {pieces[0]}, but a Redis Cluster has only 0")
    return service, int(pieces[0])


def _place(place: str, port: int) -> tuple[str, int]:
    """Host and port of ``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``."""
    try:
        parts = urlsplit(f"//{place}")
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise UrlError(f"redis_url has {place!r} where HOST:PORT belongs: {error}") from None
    if not host:
        raise UrlError(f"redis_url has {place!r} where HOST:PORT belongs")
    return host, given or port
