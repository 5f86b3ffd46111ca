"""One connection to the Redis that tidegate uses, found by its URL and made ready. Blocking: for threads.

redis-py does the sockets, TLS, login and RESP3; what is added is finding the primary or the shard, reading what Redis
pushes in its place among the replies, and not accepting a Redis that would not do.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as ReplyTimeout
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from gateway.cluster.ports import Command, Identity
from gateway.cluster.redis_keys import PREFIX, PROBE
from gateway.cluster.redis_url import RedisAddress

REPLY_TIMEOUT_S: Final = 2.0
"""How long Redis may say nothing while it owes a reply, until it is away: acknowledgements wait for it meanwhile, and a
Redis that forks or is scheduled badly is silent for some hundred milliseconds."""

CONNECT_TIMEOUT_S: Final = 2.0
"""How long a connect may take."""

PROBE_EXPIRES_S: Final = 60
"""When the key that shows that writes are taken goes away again."""

PUSH: Final = object()
"""What ``RedisConnection.read`` returns when Redis pushed something, which ``pushed`` got."""


class NotUsable(Exception):
    """Redis was reached and does not do; the text says what to do about it."""


class Ready(Struct, frozen=True):
    """What is known of a new connection."""

    identity: Identity
    client_id: int
    version: str
    policy: str


LOSSES: Final = (RedisError, NotUsable, OSError)
"""All that ends a connection or keeps it from coming to be."""


class _PushMixin:
    """A Connection whose parser tells pushes apart from replies."""

    def __init__(self, *, pushed: Callable[[Sequence[Any]], None], **options: Any) -> None:
        self._pushed = pushed
        super().__init__(**options)

    def set_parser(self, parser_class: Callable[..., Any]) -> None:
        """Whichever parser it is to be, also when HELLO changes it: pushes go to this object."""

        def make(**options: Any) -> Any:
            parser = parser_class(**options)
            parser.set_invalidation_push_handler(self._push)
            parser.set_pubsub_push_handler(self._push)
            return parser

        # Redis before 6 is spoken to in RESP2 until HELLO, whose parser knows no pushes.
        super().set_parser(make if hasattr(parser_class, "set_pubsub_push_handler") else parser_class)  # type: ignore[misc]

    def _push(self, message: Sequence[Any]) -> object:
        self._pushed(message)
        return PUSH


class _PlainConnection(_PushMixin, Connection):
    pass


class _TlsConnection(_PushMixin, SSLConnection):
    pass


class RedisConnection:
    """A connection that was made ready. All methods raise what LOSSES lists, after which it is of no use."""

    def __init__(self, address: RedisAddress, name: str, pushed: Callable[[Sequence[Any]], None]) -> None:
        """Connect. Blocks for some CONNECT_TIMEOUT_S at most.

        Args:
            address: where Redis is.
            name: how the connection is to be called in CLIENT LIST; what Redis does not allow there is replaced.
            pushed: takes what Redis pushes, as lists.
        """
        host, port = find(address)
        name = "".join(letter if "!" <= letter <= "~" else "_" for letter in name)
        make: Any = _TlsConnection if address.tls else _PlainConnection
        self._connection: Any = make(
            pushed=pushed, host=host, port=port, db=address.db, client_name=name, **_login(address), **_options(address)
        )
        try:
            self._connection.connect()
        except (AuthenticationError, ResponseError) as error:
            raise NotUsable(
                f"Redis at {host}:{port} refuses user and password of redis_url, or is older than 6.2: {error}"
            ) from error
        self.place = f"{host}:{port}"

    def close(self) -> None:
        """End it."""
        self._connection.disconnect()

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands; their replies have to be read."""
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)

    def read(self) -> object:
        """The next reply, or PUSH."""
        return self._connection.read_response(disable_decoding=True, push_request=True)

    def reply(self, timeout_s: float = REPLY_TIMEOUT_S) -> object:
        """The next reply, behind what is pushed before it."""
        reading = partial(self._connection.read_response, disable_decoding=True, push_request=True, timeout=timeout_s)
        while (reply := reading()) is PUSH:
            pass
        return reply

    def read_pushes(self) -> None:
        """Read what was pushed while no reply was owed."""
        while self._connection.can_read(0):
            if self.read() is not PUSH:
                raise NotUsable("Redis sent a reply to nothing")

    def ask(self, *command: str | bytes | int) -> Any:
        """One command and its reply."""
        self.send([command])
        return self.reply()

    def make_ready(self) -> Ready:
        """See that it takes writes, learn what it is."""
        info = dict(
            line.split(":", 1) for line in self.ask("INFO").decode(errors="replace").splitlines() if ":" in line
        )
        if info.get("role") != "master":
            raise NotUsable(f"Redis at {self.place} is a replica; clients need its primary")
        try:
            self.ask("SET", PROBE, 1, "EX", PROBE_EXPIRES_S)
        except ResponseError as error:
            if info.get("cluster_enabled") == "1":
                raise NotUsable(
                    f"Redis at {self.place} is one of a Redis Cluster and has not all of tidegate's keys: "
                    f"redis_url has to begin with redis+cluster:// or rediss+cluster:// ({error})"
                ) from error
            raise NotUsable(f"Redis at {self.place} takes no writes: {error}") from error
        policy = info.get("maxmemory_policy", "noeviction")
        evicts = policy != "noeviction" and info.get("maxmemory", "0") != "0"
        identity = Identity(info["run_id"], info["master_replid"], evicts, int(info.get("evicted_keys", 0)))
        return Ready(identity, self.ask("CLIENT", "ID"), info.get("redis_version", ""), policy)

    def kill(self, client_id: int) -> None:
        """Have Redis end another connection, if it is there; this one itself is spared."""
        try:
            self.ask("CLIENT", "KILL", "ID", client_id)
        except ResponseError as error:
            raise NotUsable(f"Redis at {self.place} has to allow CLIENT KILL: {error}") from error

    def track(self) -> None:
        """Have changes of all keys reported that are read from now on, unless a read is exempted."""
        self.ask("CLIENT", "TRACKING", "ON", "OPTOUT")


def find(address: RedisAddress) -> tuple[str, int]:
    """Host and port of the Redis to use now. Raises what LOSSES lists."""
    if address.kind == "sentinel":
        return _find_primary(address)
    if address.kind == "cluster":
        return _find_shard(address)
    return address.hosts[0]


def _find_primary(address: RedisAddress) -> tuple[str, int]:
    login = {"username": address.sentinel_username or None, "password": address.sentinel_password or None}
    options = {key: value for key, value in _options(address).items() if key != "protocol"}
    make: Any = Sentinel
    sentinel = make(address.hosts, sentinel_kwargs={**login, **options, "ssl": address.tls})
    try:
        host, port = sentinel.discover_master(address.service)
    except MasterNotFoundError as error:
        raise NotUsable(
            f"no sentinel of redis_url tells a primary called {address.service!r}, the name behind the hosts: {error}"
        ) from error
    finally:
        sentinel.close()
    return str(host), int(port)


def _find_shard(address: RedisAddress) -> tuple[str, int]:
    """Ask one node after the other for the primary of the slot that has all of tidegate's keys."""
    slot = key_slot(PREFIX.encode())
    problem: Exception = NotUsable("no host of redis_url answered")
    make: Any = SSLConnection if address.tls else Connection
    for host, port in address.hosts:
        node = make(host=host, port=port, **_login(address), **_options(address))
        try:
            node.send_command("CLUSTER", "SLOTS")
            for first, last, primary, *_replicas in node.read_response():
                if first <= slot <= last:
                    # An empty name stands for the very address that was asked.
                    return primary[0].decode() or host, int(primary[1])
            problem = NotUsable(f"no shard of the Redis Cluster has tidegate's keys (slot {slot}): it is not whole")
        except ResponseError as error:
            problem = NotUsable(
                f"Redis at {host}:{port} does not tell the slots of a Redis Cluster ({error}): if it is none, "
                "redis_url has to begin with redis:// or rediss://"
            )
        except LOSSES as error:
            problem = error
        finally:
            node.disconnect()
    raise problem


def _login(address: RedisAddress) -> dict[str, Any]:
    return {"username": address.username or None, "password": address.password or None}


def _options(address: RedisAddress) -> dict[str, Any]:
    """What connections to Redis and to sentinels have in common."""
    options: dict[str, Any] = {
        "protocol": 3,
        "socket_timeout": REPLY_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if address.tls:
        for name, path in address.tls_files.items():
            _check_readable(name, path)
        options |= address.tls_files
        options["ssl_check_hostname"] = address.check_hostname
    return options


def _check_readable(name: str, path: str) -> None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise NotUsable(f"{name}={path} of redis_url cannot be read ({error.strerror}): give a PEM file") from None


def in_words(error: Exception) -> str:
    """Why Redis is away, for a log line."""
    if isinstance(error, ReplyTimeout):
        return f"it said nothing for {REPLY_TIMEOUT_S:g} s"
    return str(error)
