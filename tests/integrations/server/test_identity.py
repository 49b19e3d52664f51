"""Who may call: programs of this machine without authentication, and with it the callers that a token names."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from httpx_sse import aconnect_sse
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from session_middleware import Sessions
from session_middleware.errors import InvalidArgument
from session_middleware.integrations.server import Caller, JwtVerifier, LoopbackUser, app, tokens
from session_middleware.integrations.server.identity import CurrentCaller
from session_middleware.models import utc_now
from tests.support import agents
from tests.support.served_app import serving

LOCAL = ("127.0.0.1", 5000)


def connection(headers: dict[str, str], client: tuple[str, int] | None = LOCAL) -> HTTPConnection:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": client})


def with_routes(made: FastAPI) -> FastAPI:
    """The app with routes that say who calls."""

    @made.get("/whoami")
    async def whoami(caller: CurrentCaller) -> dict[str, Any]:
        return {"user": caller.user_id, "groups": caller.group_ids, "operator": caller.is_operator}

    @made.websocket("/socket")
    async def socket(websocket: WebSocket, caller: CurrentCaller) -> None:
        await websocket.accept()
        await websocket.send_text(caller.user_id)

    return made


# Without authentication


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (LOCAL, {"host": "localhost"}),
        (("::1", 1), {"host": "[::1]:8123"}),
        (("::ffff:127.0.0.1", 1), {"host": "127.0.0.1:8123"}),
        (LOCAL, {"host": "127.0.0.1", "origin": "http://localhost:3000"}),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "same-origin", "sec-fetch-dest": "image"}),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}),
    ],
)
def test_programs_of_this_machine_are_one_user(client: tuple[str, int], headers: dict[str, str]) -> None:
    assert LoopbackUser("ada")(connection(headers, client)) == Caller("ada")


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (("10.0.0.7", 1), {"host": "localhost"}),
        (None, {"host": "localhost"}),
        (("testclient", 1), {"host": "localhost"}),
        (LOCAL, {"host": "evil.example"}),  # a name that was rebound to 127.0.0.1
        (LOCAL, {"host": "localhost.evil.example"}),
        (LOCAL, {"host": "127.0.0.1.evil.example"}),
        (LOCAL, {"host": "localhost@evil.example"}),
        (LOCAL, {"host": "[not an address"}),
        (LOCAL, {"host": ""}),
        (LOCAL, {}),
        (LOCAL, {"host": "localhost", "origin": "https://evil.example"}),
        (LOCAL, {"host": "localhost", "origin": "null"}),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}),
        (LOCAL, {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}),
        (LOCAL, {"host": "localhost", "x-forwarded-for": "127.0.0.1"}),
        (LOCAL, {"host": "localhost", "forwarded": "for=127.0.0.1"}),
        (LOCAL, {"host": "localhost", "x-real-ip": "127.0.0.1"}),
    ],
)
def test_all_others_and_web_pages_of_others_are_refused(
    client: tuple[str, int] | None, headers: dict[str, str]
) -> None:
    with pytest.raises(HTTPException) as refused:
        LoopbackUser()(connection(headers, client))
    assert refused.value.status_code == 403


def test_a_header_does_not_make_a_caller_one_of_this_machine(sessions: Sessions) -> None:
    with serving(with_routes(app(sessions)), forwarded_allow_ips="*") as url:
        assert httpx.get(f"{url}/whoami", trust_env=False, timeout=60).json()["user"] == "local"
        forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"}
        response = httpx.get(f"{url}/whoami", headers=forged, trust_env=False, timeout=60)
    assert response.status_code == 403
    assert "give authenticate=…" in response.json()["detail"]


def test_a_websocket_has_the_same_callers(sessions: Sessions) -> None:
    made = with_routes(app(sessions))
    local = TestClient(made, base_url="http://localhost", client=LOCAL)
    with local.websocket_connect("ws://localhost/socket") as socket:
        assert socket.receive_text() == "local"
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect),
            local.websocket_connect("ws://localhost/socket", headers=headers),
        ):
            pass


@pytest.mark.usefixtures("each_engine")
@pytest.mark.parametrize("is_operator", [False, True])
def test_a_revoked_user_is_refused_at_once_also_as_an_operator(sessions: Sessions, is_operator: bool) -> None:
    made = with_routes(app(sessions, authenticate=lambda _: Caller("mallory", is_operator=is_operator)))
    client = TestClient(made)
    assert client.get("/whoami").status_code == 200
    sessions.revoke("mallory")
    assert (client.get("/whoami").status_code, client.get("/whoami").json()["error"]) == (403, "UserRevoked")
    sessions.revoke("mallory", lift=True)
    assert client.get("/whoami").status_code == 200


@pytest.mark.parametrize("user_id", ["", "x" * 2000, "\0", "\ud800"])
def test_an_id_that_is_none_is_no_fault_of_the_server(sessions: Sessions, user_id: str) -> None:
    client = TestClient(with_routes(app(sessions, authenticate=lambda _: Caller(user_id))))
    assert client.get("/whoami").status_code == 422


PUBLIC = {"/ok"}


def test_each_route_asks_who_calls_before_anything_else(sessions: Sessions) -> None:
    made = app(sessions, {"chat": agents.chat()}, authenticate=lambda _: None)
    client = TestClient(made)
    answers = {
        (method, path): client.request(method, re.sub(r"{\w+}", "x", path)).status_code
        for path, methods in made.openapi()["paths"].items()
        for method in methods
        if path not in PUBLIC
    }
    assert {route: status for route, status in answers.items() if status != 401} == {}


# Tokens


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str | None = "one", **more: Any) -> dict[str, Any]:
    algorithm: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **({"kid": kid} if kid else {}), **more}


def pem(key: Any) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(encoding, form))


ISSUER = {"issuer": "https://id.example", "audience": "sessions"}


def token(key: Any, algorithm: str = "RS256", *, kid: str | None = "one", without: str = "", **claims: Any) -> str:
    now = int(utc_now().timestamp())
    whole = {"iss": "https://id.example", "aud": "sessions", "sub": "ada", "exp": now + 600, "iat": now, **claims}
    whole.pop(without, None)
    return jwt.encode(whole, key, algorithm, headers={"kid": kid} if kid else None)


def bearer(text: str) -> HTTPConnection:
    return connection({"authorization": f"Bearer {text}"})


async def test_a_token_names_user_groups_and_operator(rsa_key: Any) -> None:
    def is_operator(claims: Any) -> bool:
        return "admin" in claims["realm_access"]["roles"]

    verify = JwtVerifier(
        keys={"keys": [jwk(rsa_key)]}, groups_claim="realm_access.roles", is_operator=is_operator, **ISSUER
    )
    found = await verify(bearer(token(rsa_key, realm_access={"roles": ["staff", "admin"]})))
    assert found is not None
    assert (found.user_id, found.group_ids, found.is_operator) == ("ada", ("staff", "admin"), True)
    assert found.expires_at is not None
    assert timedelta(minutes=9) < found.expires_at - utc_now() < timedelta(minutes=11)
    found = await verify(bearer(token(rsa_key)))
    assert found is not None
    assert (found.group_ids, found.is_operator) == ((), False)
    assert await verify(connection({})) is None
    assert await verify(connection({"authorization": "Basic YTpi"})) is None


async def test_keys_may_be_a_set_one_key_or_pem_and_have_no_name(rsa_key: Any, ec_key: Any) -> None:
    for keys in (
        jwk(rsa_key),
        {"keys": [jwk(ec_key, "two"), jwk(rsa_key, None)]},
        pem(rsa_key),
        [pem(ec_key), pem(rsa_key)],
    ):
        for kid in ("one", None):
            assert (await JwtVerifier(keys=keys, **ISSUER).caller_of(token(rsa_key, kid=kid))).user_id == "ada"
    es256 = JwtVerifier(keys=[pem(rsa_key), pem(ec_key)], **ISSUER)
    assert (await es256.caller_of(token(ec_key, "ES256"))).user_id == "ada"
    shared = JwtVerifier(keys="s" * 32, algorithms=("HS256",), **ISSUER)
    assert (await shared.caller_of(token("s" * 32, "HS256"))).user_id == "ada"
    numbered = JwtVerifier(keys=pem(rsa_key), user_claim="https://app.example/uid", **ISSUER)
    assert (await numbered.caller_of(token(rsa_key, **{"https://app.example/uid": 7}))).user_id == "7"


def unsigned(header: Any, payload: Any = "{}") -> str:
    def part(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    return f"{part(header)}.{part(payload)}.{part('signature')}"


def past(seconds: int) -> int:
    return int(utc_now().timestamp()) - seconds


WRONG: dict[str, Callable[[Any, Any], str]] = {
    "unsigned": lambda own, other: token(None, "none"),
    "unsigned, in capitals": lambda own, other: unsigned({"alg": "NONE", "kid": "one"}),
    "by the public key as a secret": lambda own, other: jwt.api_jws.PyJWS().encode(
        b"{}", jwk(own)["n"], "HS256", headers={"kid": "one"}
    ),
    "by another key": lambda own, other: token(other),
    "of an unknown key": lambda own, other: token(own, kid="two"),
    "of another algorithm than its key": lambda own, other: token(own, "RS512"),
    "expired": lambda own, other: token(own, exp=past(60)),
    "without an expiry": lambda own, other: token(own, without="exp"),
    "not valid yet": lambda own, other: token(own, nbf=past(-600)),
    "of another issuer": lambda own, other: token(own, iss="https://evil.example"),
    "without an issuer": lambda own, other: token(own, without="iss"),
    "for another audience": lambda own, other: token(own, aud="other"),
    "without an audience": lambda own, other: token(own, without="aud"),
    "of nobody": lambda own, other: token(own, without="sub"),
    "of a user that is no text": lambda own, other: token(own, sub={"$ne": ""}),
    "of groups that are none": lambda own, other: token(own, groups=7),
    "of an endless expiry": lambda own, other: token(own, exp=1e300),
    "of an expiry in no year": lambda own, other: token(own, exp=10**18),
    "empty": lambda own, other: "",
    "no token": lambda own, other: "a.b.c",
    "with a deep header": lambda own, other: unsigned("[" * 40_000),
    "with a header that is none": lambda own, other: unsigned([]),
    "with the name of a key that is none": lambda own, other: unsigned({"alg": "RS256", "kid": {}}),
    "with an algorithm that is none": lambda own, other: unsigned({"alg": ["RS256"], "kid": "one"}),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_token_is_refused_that_is(name: str, rsa_key: Any, ec_key: Any) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048) if "another key" in name else None
    verify = JwtVerifier(keys={"keys": [jwk(rsa_key)]}, groups_claim="groups", **ISSUER)
    with pytest.raises(HTTPException) as refused:
        await verify(bearer(WRONG[name](rsa_key, other)))
    assert refused.value.status_code == 401
    assert refused.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    assert refused.value.detail == ("the token has expired" if name == "expired" else "the token is not valid")


async def test_without_an_audience_only_tokens_for_none_are_accepted(rsa_key: Any) -> None:
    verify = JwtVerifier(keys=pem(rsa_key), issuer=["https://other.example", "https://id.example"], audience=None)
    assert (await verify.caller_of(token(rsa_key, without="aud"))).user_id == "ada"
    with pytest.raises(HTTPException):
        await verify.caller_of(token(rsa_key))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"keys": {}, "jwks_url": "https://id.example/keys"},
        {"keys": {"keys": []}},
        {"keys": {"keys": [{"kty": "unknown"}]}},
        {"keys": ""},
        {"keys": []},
        {"jwks_url": "file:///etc/passwd"},
        {"jwks_url": "id.example/keys"},
        {"keys": "x", "algorithms": ("none",)},
        {"keys": "x", "algorithms": ("RS256", "HS256")},
        {"keys": "x", "algorithms": "HS256"},
        {"keys": "x", "algorithms": ()},
        {"keys": "x", "issuer": ""},
        {"keys": "x", "audience": []},
    ],
)
def test_a_verifier_that_would_verify_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        JwtVerifier(**{**ISSUER, **wrong})


# The keys of a provider


class Provider:
    """An identity provider: its keys, how often they were read, and whether it answers."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.reads = 0
        self.answers = threading.Event()
        self.answers.set()
        self.fails = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reads += 1
                outer.answers.wait(20)
                self.send_response(500 if outer.fails else 200)
                self.end_headers()
                self.wfile.write(json.dumps({"keys": outer.keys}).encode())

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture
def provider(rsa_key: Any) -> Iterator[Provider]:
    provider = Provider()
    provider.keys = [jwk(rsa_key)]
    thread = threading.Thread(target=provider.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield provider
    provider.server.shutdown()
    thread.join()
    provider.server.server_close()


async def test_the_keys_are_read_once_for_all_and_the_loop_does_not_wait(provider: Provider, rsa_key: Any) -> None:
    verify = JwtVerifier(jwks_url=provider.url, **ISSUER)
    provider.answers.clear()
    callers = [asyncio.create_task(verify.caller_of(token(rsa_key))) for _ in range(20)]
    await asyncio.sleep(0)
    provider.answers.set()  # which a loop that waits would not come to
    assert {caller.user_id for caller in await asyncio.gather(*callers)} == {"ada"}
    assert provider.reads == 1


async def test_unknown_keys_are_looked_for_once_in_a_while(
    provider: Provider, rsa_key: Any, ec_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = JwtVerifier(jwks_url=provider.url, **ISSUER)
    await verify.caller_of(token(rsa_key))
    for kid in ("two", *map(str, range(20))):
        with pytest.raises(HTTPException):
            await verify.caller_of(token(ec_key, "ES256", kid=kid))
    assert provider.reads == 1
    monkeypatch.setattr(tokens, "_COOLDOWN_SECONDS", 0)
    verify = JwtVerifier(jwks_url=provider.url, **ISSUER)
    await verify.caller_of(token(rsa_key))
    provider.keys = [jwk(ec_key, "two")]  # the provider has another key now
    assert (await verify.caller_of(token(ec_key, "ES256", kid="two"))).user_id == "ada"
    with pytest.raises(HTTPException):
        await verify.caller_of(token(rsa_key))


async def test_a_provider_that_is_down_refuses_nobody_whose_key_is_known(
    provider: Provider, rsa_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_COOLDOWN_SECONDS", 0)
    monkeypatch.setattr(tokens, "_FRESH_SECONDS", 0)
    verify = JwtVerifier(jwks_url=provider.url, **ISSUER)
    provider.fails = True
    for _ in range(3):
        with pytest.raises(HTTPException) as refused:
            await verify.caller_of(token(rsa_key))
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "5"})
    assert provider.reads == 1
    monkeypatch.setattr(tokens, "_RETRY_SECONDS", 0)
    verify = JwtVerifier(jwks_url=provider.url, **ISSUER)
    provider.fails = False
    await verify.caller_of(token(rsa_key))
    provider.fails = True
    for _ in range(3):
        assert (await verify.caller_of(token(rsa_key))).user_id == "ada"


# Open streams


async def test_an_open_stream_ends_when_its_token_expires(sessions: Sessions) -> None:
    def authenticate(_: HTTPConnection) -> Caller:
        return Caller("ada", expires_at=utc_now() + timedelta(milliseconds=50))

    sessions.open("t", user_id="ada")
    with serving(app(sessions, authenticate=authenticate)) as url:
        async with (
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client,
            aconnect_sse(client, "GET", "/session/t/follow") as source,
        ):
            events = [event async for event in source.aiter_sse()]
    assert {event.event for event in events[:-1]} <= {"event"}  # none, if the token expired before it was read
    assert (events[-1].event, json.loads(events[-1].data)["error"]) == ("error", "TokenExpired")
