"""Limits of requests, of users, and of the web pages that may call."""

from __future__ import annotations

import http.client
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from httpx_sse import aconnect_sse

from session_middleware import Sessions
from session_middleware.errors import InvalidArgument
from session_middleware.integrations.server import Limits, app
from session_middleware.integrations.server.identity import CurrentCaller
from session_middleware.integrations.server.limits import RequestRates
from tests.support.http_server import caller_of
from tests.support.served_app import serving


def with_routes(made: FastAPI) -> FastAPI:
    @made.post("/size")
    async def size(request: Request, caller: CurrentCaller) -> int:
        return len(await request.body())

    return made


def client_of(made: FastAPI, **headers: str) -> TestClient:
    return TestClient(with_routes(made), headers=headers)


# Sizes


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_also_without_a_length(sessions: Sessions, is_chunked: bool) -> None:
    def body(size: int) -> Any:
        return iter([b"x" * 10] * (size // 10)) if is_chunked else b"x" * size

    made = with_routes(app(sessions, authenticate=caller_of, limits=Limits(body_bytes=1000)))
    with (
        serving(made) as url,
        httpx.Client(base_url=url, headers={"x-user": "ada"}, trust_env=False, timeout=60) as client,
    ):
        assert client.post("/size", content=body(1000)).json() == 1000
        assert client.post("/size", content=body(1010)).status_code == 413


def test_a_length_that_is_said_is_refused_before_the_body_comes(sessions: Sessions) -> None:
    made = with_routes(app(sessions, authenticate=caller_of))
    with serving(made) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.putrequest("POST", "/size")
        for name, value in (("x-user", "ada"), ("content-length", str(10**12))):
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


# Users


def test_a_user_who_calls_too_often_is_told_when_to_come_back(sessions: Sessions) -> None:
    client = client_of(app(sessions, authenticate=caller_of, limits=Limits(requests_per_minute=3)), **{"x-user": "ada"})
    assert [client.post("/size").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = client.post("/size")
    assert refused.headers["retry-after"] == "20"
    assert "more than 3 requests in a minute" in refused.json()["detail"]
    assert client.post("/size", headers={"x-user": "bob"}).status_code == 200


def test_a_bucket_is_refilled_by_time_and_forgotten_when_it_is_full() -> None:
    now = 0.0
    rates = RequestRates(60, clock=lambda: now)
    for _ in range(60):
        rates.take("ada")
    with pytest.raises(HTTPException):
        rates.take("ada")
    now += 2
    rates.take("ada"), rates.take("ada")
    with pytest.raises(HTTPException) as refused:
        rates.take("ada")
    assert refused.value.headers == {"Retry-After": "1"}
    now += 3600
    for number in range(10_000):
        rates.take(f"user {number}")
    now += 60
    for number in range(20_000, 40_000):
        rates.take(f"user {number}")
        now += 0.1
    assert len(rates._buckets) < 10_000


async def test_a_user_has_so_many_streams_open_and_gets_the_place_of_one_that_ended(sessions: Sessions) -> None:
    sessions.open("t", user_id="ada"), sessions.open("b", user_id="bob")
    made = app(sessions, authenticate=caller_of, limits=Limits(streams_per_user=2))
    with serving(made) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client, AsyncExitStack() as two:

            async def status(stack: AsyncExitStack, session_id: str, user: str) -> int:
                following = aconnect_sse(client, "GET", f"/session/{session_id}/follow", headers={"x-user": user})
                source = await stack.enter_async_context(following)
                return int(source.response.status_code)

            assert [await status(two, "t", "ada") for _ in range(3)] == [200, 200, 429]
            assert await status(two, "b", "bob") == 200
            await two.aclose()
            while made.state.server.streams.count():
                await client.get("/ok")
            assert await status(two, "t", "ada") == 200


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "1"])
@pytest.mark.parametrize("name", ["body_bytes", "requests_per_minute", "streams_per_user"])
def test_a_limit_is_a_number(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Limits(**{name: wrong})


# Web pages


def preflight(client: TestClient, origin: str) -> str | None:
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    return client.options("/threads", headers=asked).headers.get("access-control-allow-origin")


def test_pages_of_this_machine_may_call_a_server_without_authentication(sessions: Sessions) -> None:
    client = TestClient(app(sessions), base_url="http://localhost", client=("127.0.0.1", 1))
    assert preflight(client, "http://localhost:3000") == "http://localhost:3000"
    assert preflight(client, "https://evil.example") is None
    assert preflight(client, "http://localhost.evil.example") is None
    answer = client.get("/ok", headers={"origin": "http://127.0.0.1:3000"})
    assert "content-location" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers


def test_with_authentication_the_pages_that_are_named_may_call(sessions: Sessions) -> None:
    client = TestClient(app(sessions, authenticate=caller_of))
    assert preflight(client, "http://localhost:3000") is None
    client = TestClient(app(sessions, authenticate=caller_of, origins=["https://chat.example"]))
    assert preflight(client, "https://chat.example") == "https://chat.example"
    assert preflight(client, "https://evil.example") is None
    with pytest.raises(InvalidArgument, match="origins"):
        app(sessions, origins="https://chat.example")
