import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.auth import TokenRefused, UnknownKey, Verifier
from gateway.auth import jwks as jwks_module
from gateway.auth.jwks import JWKS_BYTES_MAX, REFRESH_INTERVAL_MIN_S, FetchFailed, check_url, fetch
from gateway.auth.keys import AuthMisconfigured, parse_jwks
from gateway.config import Settings
from tests.gateway.auth.keys import NOW_S, b64, jwks, private_key, public_jwk, signed_by

URL = "https://id.example/jwks.json"
REFRESH_S = 300.0


class Provider:
    """A token issuer's JWKS: what it publishes now, or how it fails."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.document: bytes | Exception = jwks(*keys)
        self.fetches = 0
        self.gate: threading.Event | None = None

    def fetch(self, url: str) -> bytes:
        assert url == URL
        self.fetches += 1
        if self.gate is not None:
            assert self.gate.wait(30)
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


def verifier_of(provider: Provider, algorithm: str = "ES256") -> Verifier:
    settings = Settings(auth_algorithm=algorithm, auth_jwks_url=URL, auth_jwks_refresh_s=REFRESH_S)
    return Verifier.from_settings(settings, now_s=lambda: NOW_S, fetch=provider.fetch)


async def begun(provider: Provider, count: int) -> None:
    """So many fetches have begun. They happen in threads: give them turns, on a clock that only the test moves."""
    while provider.fetches < count:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()


async def done(verifier: Verifier, count: int) -> None:
    """So many fetches have ended, and the task that keeps the keys fresh sleeps."""
    assert verifier.jwks is not None
    while verifier.jwks.fetched + verifier.jwks.failed < count:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()


async def test_the_key_is_chosen_by_kid(nursery: trio.Nursery) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="a"), public_jwk("ES256", 1, kid="b"))
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    assert verifier.verify(signed_by("ES256", 0, kid="a")).user == "alice"
    assert verifier.verify(signed_by("ES256", 1, kid="b")).user == "alice"
    with pytest.raises(TokenRefused, match="signature does not verify"):
        verifier.verify(signed_by("ES256", 0, kid="b"))
    with pytest.raises(TokenRefused, match=r"names no key \(kid\), but its issuer has 2"):
        verifier.verify(signed_by("ES256", 0))
    with pytest.raises(UnknownKey, match="does not publish"):
        verifier.verify(signed_by("ES256", 0, kid="c"))
    with pytest.raises(TokenRefused, match="not a JWT"):
        verifier.verify("a.b.c")
    assert provider.fetches == 1


async def test_one_key_needs_no_kid(nursery: trio.Nursery) -> None:
    verifier = verifier_of(Provider(public_jwk("ES256")))
    await nursery.start(verifier.run)
    assert verifier.verify(signed_by("ES256")).user == "alice"


async def test_rotation_is_found_by_the_first_token_with_the_new_kid(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="old"))
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    provider.document = jwks(public_jwk("ES256", 1, kid="new"))
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    assert (await verifier.verify_fresh(signed_by("ES256", 1, kid="new"))).user == "alice"
    assert provider.fetches == 2
    with pytest.raises(UnknownKey):
        verifier.verify(signed_by("ES256", 0, kid="old"))


async def test_invented_kids_cause_few_fetches(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="a"))
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    for number in range(20):
        with pytest.raises(UnknownKey):
            await verifier.verify_fresh(signed_by("ES256", 0, kid=f"invented-{number}"))
    assert provider.fetches == 1  # the one at start was less than REFRESH_INTERVAL_MIN_S ago
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    for number in range(20):
        with pytest.raises(UnknownKey):
            await verifier.verify_fresh(signed_by("ES256", 0, kid=f"invented-{number}"))
    assert provider.fetches == 2


async def test_many_at_once_share_one_fetch(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="old"))
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    provider.document = jwks(public_jwk("ES256", 1, kid="new"))
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    provider.gate = threading.Event()
    users: list[str] = []

    async def connect() -> None:
        users.append((await verifier.verify_fresh(signed_by("ES256", 1, kid="new"))).user)

    async with trio.open_nursery() as connecting:
        for _ in range(10):
            connecting.start_soon(connect)
        await begun(provider, 2)
        provider.gate.set()
    assert users == ["alice"] * 10
    assert provider.fetches == 2


@pytest.mark.parametrize("trouble", [FetchFailed("answered status 500; expected 200"), b"<html>", b'{"keys":[]}'])
async def test_an_outage_keeps_the_old_keys(
    trouble: bytes | Exception, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="a"))
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    provider.document = trouble
    await wait_all_tasks_blocked()
    mock_clock.jump(REFRESH_S)
    await done(verifier, 2)
    assert verifier.verify(signed_by("ES256", 0, kid="a")).user == "alice"
    # it tries again soon, not after another five minutes
    provider.document = jwks(public_jwk("ES256", 1, kid="b"))
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    await done(verifier, 3)
    assert verifier.verify(signed_by("ES256", 1, kid="b")).user == "alice"


async def test_a_node_starts_without_its_provider(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    provider = Provider()
    provider.document = FetchFailed("connection refused")
    verifier = verifier_of(provider)
    await nursery.start(verifier.run)
    with pytest.raises(UnknownKey, match="could not fetch the public keys"):
        await verifier.verify_fresh(signed_by("ES256", 0, kid="a"))
    provider.document = jwks(public_jwk("ES256", 0, kid="a"))
    await wait_all_tasks_blocked()
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    await done(verifier, 2)
    assert verifier.verify(signed_by("ES256", 0, kid="a")).user == "alice"


async def test_cancelling_abandons_a_fetch_and_leaves_the_next_one_possible(mock_clock: MockClock) -> None:
    provider = Provider(public_jwk("ES256", 0, kid="a"))
    verifier = verifier_of(provider)
    provider.gate = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verifier.run)
        await begun(provider, 1)
        nursery.cancel_scope.cancel()
    provider.gate.set()
    mock_clock.jump(REFRESH_INTERVAL_MIN_S)
    assert (await verifier.verify_fresh(signed_by("ES256", 0, kid="a"))).user == "alice"


async def test_without_a_jwks_there_is_nothing_to_keep_fresh() -> None:
    verifier = Verifier.from_settings(Settings(auth_secret="x" * 32))
    async with trio.open_nursery() as nursery:
        await nursery.start(verifier.run)
    with pytest.raises(TokenRefused):
        await verifier.verify_fresh("a.b.c")


# --- What a JWKS may contain -------------------------------------------------------------------------------------


def test_keys_that_do_not_fit_are_passed_over_by_name() -> None:
    secret_key = {**public_jwk("ES256", 0, kid="private"), "d": b64(b"1" * 32)}
    keys, passed_over = parse_jwks(
        jwks(
            public_jwk("RS256", kid="rsa"),
            public_jwk("ES256", 0, kid="good", use="sig", alg="ES256", key_ops=["verify"]),
            public_jwk("ES256", 0, kid="enc", use="enc"),
            public_jwk("ES256", 0, kid="sign", key_ops=["sign"]),
            public_jwk("ES256", 0, kid="512", alg="ES512"),
            public_jwk("P-384", kid="p384"),
            {"kty": "oct", "k": b64(b"x" * 32), "kid": "oct"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "short"},
            {"kty": "EC", "kid": "empty"},
            secret_key,
            public_jwk("ES256", 0, kid=5),
            public_jwk("ES256", 0, kid="no operations", key_ops=None),
            public_jwk("ES256", 0, kid="a number of operations", key_ops=5),
            "nonsense",  # type: ignore[arg-type]
        ),
        "ES256",
    )
    assert list(keys) == ["good"]
    assert len(passed_over) == 13
    assert all(reason.startswith("key ") for reason in passed_over)
    assert private_key("ES256", 0).public_key() == keys["good"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", 'no list "keys"'),
        (b'{"keys": 5}', 'no list "keys"'),
        (b'{"keys": []}', r"no key for ES256 \(it is empty\)"),
        (jwks(*[{}] * 65), "has 65 keys; allowed are 64"),
        (jwks(public_jwk("RS256")), "its kty is not EC"),
    ],
)
def test_documents_that_are_refused(document: bytes, complaint: str) -> None:
    with pytest.raises(AuthMisconfigured, match=complaint):
        parse_jwks(document, "ES256")


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA-1024", "RS256"), ("Ed448", "EdDSA")])
def test_weak_or_foreign_keys(kind: str, algorithm: str) -> None:
    with pytest.raises(AuthMisconfigured, match=f"no key for {algorithm}"):
        parse_jwks(jwks(public_jwk(kind)), algorithm)


@pytest.mark.parametrize(
    "url", ["file:///x", "ftp://h/x", "https://", "jwks.json", "https://[::1", "https://h:x/", "//h/"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(AuthMisconfigured, match="is not an https://"):
        check_url(url)


# --- Fetching over HTTP ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def http_answer(status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has had enough
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        finally:
            server.shutdown()
            thread.join()


def test_fetch() -> None:
    with http_answer(200, b'{"keys":[]}') as url:
        assert fetch(url) == b'{"keys":[]}'


@pytest.mark.parametrize(
    ("status", "body", "headers", "complaint"),
    [
        (404, b"", (), "answered status 404; expected 200"),
        (204, b"", (), "answered status 204; expected 200"),
        (302, b"", (("Location", "http://127.0.0.1:1/other"),), "answered 302, a redirect; configure the final URL"),
        (200, b"x" * (JWKS_BYTES_MAX + 1), (), f"sent more than {JWKS_BYTES_MAX} bytes"),
    ],
)
def test_answers_that_are_no_jwks(
    status: int, body: bytes, headers: tuple[tuple[str, str], ...], complaint: str
) -> None:
    with http_answer(status, body, headers) as url, pytest.raises(FetchFailed, match=complaint):
        fetch(url)


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X-Slow: yes\r\n", b"5\r\nslow!\r\n"])
def test_a_provider_that_goes_on_and_on_is_left_in_time(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read brings something at once; a thread that waits for the end would hold up all later fetches."""
    monkeypatch.setattr(jwks_module, "FETCH_TIMEOUT_S", 0.2)
    left_in_time = threading.Event()
    begins = {b"H": b"", b"X": b"HTTP/1.1 200 OK\r\n", b"5": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"}

    def go_on(listening: socket.socket) -> None:
        sock, _ = listening.accept()
        with sock:
            sock.sendall(begins[piece[:1]])
            sock.settimeout(0.05)
            sock.recv(65_536)  # the request
            for _ in range(200):
                sock.sendall(piece)
                try:
                    sock.recv(1)
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    pass
                left_in_time.set()
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=go_on, args=(listening,))
        thread.start()
        try:
            with pytest.raises(FetchFailed, match=r"took longer than 0\.2 s"):
                fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/jwks.json")
        finally:
            thread.join()
    assert left_in_time.is_set()


def test_nobody_answers() -> None:
    with http_answer(200, b"") as url:
        pass
    with pytest.raises(FetchFailed, match="refused"):
        fetch(url)
