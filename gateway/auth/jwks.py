"""Public keys from a JWKS URL: fetched at start, again from time to time, and when a token names an unknown one."""

import io
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import IO, Any, Final

import structlog
import trio

from gateway.auth.keys import AuthMisconfigured, PublicKey, parse_jwks

FETCH_TIMEOUT_S: Final = 5.0
"""Seconds that fetching a JWKS may take in all."""

JWKS_BYTES_MAX: Final = 262_144
"""Bytes of a JWKS document: 64 keys with certificate chains need less."""

REFRESH_INTERVAL_MIN_S: Final = 10.0
"""Seconds between two fetches, whoever asks: strangers with invented key ids must not make a node flood a provider."""

Fetch = Callable[[str], bytes]
"""Gets the document at a URL. Runs in a thread; raises FetchFailed."""

_log = structlog.get_logger(__name__)


class FetchFailed(Exception):
    """The JWKS could not be fetched; the message says why."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A provider's keys come from the configured URL and nowhere else."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, *_: Any) -> None:
        raise FetchFailed(f"answered {code}, a redirect; configure the final URL")


class _UntilEnd(io.RawIOBase):
    """What a socket receives until ``end_s`` (of the monotonic clock), however little comes how often."""

    def __init__(self, sock: socket.socket, end_s: float) -> None:
        self._sock = sock
        self._received = sock.makefile("rb", buffering=0)
        self._end_s = end_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See io.RawIOBase. Raises TimeoutError at the end of the time."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._received.readinto(buffer)

    def close(self) -> None:
        self._received.close()
        super().close()


class _Response(HTTPResponse):
    """A response that has to be complete by ``end_s``, its head as well as its body."""

    def __init__(self, end_s: float, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_UntilEnd(sock, end_s))


class _InTime(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https URLs, whose responses have to be complete by ``end_s``."""

    def __init__(self, end_s: float) -> None:
        super().__init__()
        self._end_s = end_s

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, HTTPSConnection), req)

    def _connection(self, kind: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        connection = kind(host, **options)
        connection.response_class = partial(_Response, self._end_s)  # type: ignore[assignment]
        return connection


def fetch(url: str) -> bytes:
    """Get the document at an http or https URL, within FETCH_TIMEOUT_S and JWKS_BYTES_MAX. Blocks: call in a thread.

    Finding and reaching its host may take as long besides, for each of its addresses.

    Raises:
        FetchFailed: no answer in time, not status 200, or too large.
    """
    end_s = time.monotonic() + FETCH_TIMEOUT_S
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked at start
    document = b""
    try:
        with urllib.request.build_opener(_NoRedirects, _InTime(end_s)).open(
            request, timeout=FETCH_TIMEOUT_S
        ) as response:
            if response.status != 200:
                raise FetchFailed(f"answered status {response.status}; expected 200")
            while chunk := response.read1(65_536):
                document += chunk
                if len(document) > JWKS_BYTES_MAX:
                    raise FetchFailed(f"sent more than {JWKS_BYTES_MAX} bytes")
    except urllib.error.HTTPError as error:
        raise FetchFailed(f"answered status {error.code}; expected 200") from None
    except TimeoutError:
        raise FetchFailed(f"took longer than {FETCH_TIMEOUT_S} s") from None
    except (OSError, HTTPException, ValueError) as error:
        raise FetchFailed(str(error) or type(error).__name__) from None
    return document


def check_url(url: str) -> str:
    """The URL itself, if it can be a JWKS URL. Raises AuthMisconfigured."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise AuthMisconfigured(f"auth_jwks_url {url!r} is not an https:// (or http://) URL with a host")
    return url


class JwksKeys:
    """The keys that a JWKS URL gave last. An outage of the provider leaves them as they are.

    Attributes:
        by_kid: public keys by key id; empty until the first fetch succeeded.
        fetched: how many fetches succeeded.
        failed: how many did not.
    """

    def __init__(self, url: str, algorithm: str, refresh_s: float, fetch: Fetch = fetch) -> None:
        self.by_kid: dict[str, PublicKey] = {}
        self.fetched = 0
        self.failed = 0
        self._url = check_url(url)
        self._algorithm = algorithm
        self._refresh_s = max(refresh_s, REFRESH_INTERVAL_MIN_S)
        self._fetch = fetch
        self._failing = False
        self._one_fetch = trio.Lock()
        self._tried_at = -float("inf")  # trio's clock, at the end of the last fetch

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch now, and then every ``refresh_s`` for ever; sooner after a failure. Started after the first try.

        Cancelling leaves the keys as they are; a fetch that is under way is abandoned.
        """
        if self._url.startswith("http:"):
            _log.warning("jwks over plain http: whoever is on the way can replace the keys", url=self._url)
        await self.refresh()
        task_status.started()
        while True:
            await trio.sleep(self._refresh_s if self.by_kid and not self._failing else REFRESH_INTERVAL_MIN_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Fetch the keys anew, unless the last fetch ended less than REFRESH_INTERVAL_MIN_S ago.

        One fetch at a time: who comes while one is under way waits for it, and is content with what it brings.
        Never raises for an outage: that is logged and counted. Cancelling leaves the keys as they are.
        """
        async with self._one_fetch:
            if trio.current_time() - self._tried_at < REFRESH_INTERVAL_MIN_S:
                return
            try:
                document = await trio.to_thread.run_sync(self._fetch, self._url, abandon_on_cancel=True)
                keys, passed_over = parse_jwks(document, self._algorithm)
            except (FetchFailed, AuthMisconfigured) as error:
                self.failed += 1
                self._failing = True
                _log.warning("jwks not fetched", url=self._url, reason=str(error), keys_kept=len(self.by_kid))
            else:
                self.fetched += 1
                self._failing = False
                if keys.keys() != self.by_kid.keys():
                    _log.info("jwks fetched", url=self._url, kids=sorted(keys), passed_over=passed_over)
                self.by_kid = keys
            finally:
                self._tried_at = trio.current_time()
