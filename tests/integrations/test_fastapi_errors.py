"""Errors of a real FastAPI app over its test client, and the table of the page."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

import pytest

from session_middleware import InvalidSettings, SessionBusy, Sessions, StorageError, UserRequired, errors

pytest.importorskip("fastapi")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from session_middleware.integrations.fastapi_errors import add_error_handler, status_of

PAGE = Path(__file__).parents[2] / "docs" / "chat_app.md"


def test_an_error_is_answered_by_its_status_and_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    add_error_handler(app)
    raised: dict[str, Exception] = {
        "busy": SessionBusy("secret", process="host"),
        "nobody": UserRequired("secret"),
        "disk": StorageError("/secret/path", "the disk is full", advice="free some space"),
        "settings": InvalidSettings(["secret"]),
    }

    @app.get("/{name}")
    async def fail(name: str) -> None:
        raise raised[name]

    client = TestClient(app, raise_server_exceptions=True)
    with caplog.at_level(logging.ERROR):
        found = {name: client.get(f"/{name}") for name in raised}
    assert {name: response.status_code for name, response in found.items()} == {
        "busy": 409,
        "nobody": 401,
        "disk": 503,
        "settings": 500,
    }
    assert found["busy"].json() == {"error": "SessionBusy", "detail": "session busy"}
    assert found["busy"].headers["retry-after"] == "1"
    assert not any("secret" in response.text for response in found.values())
    assert [record.getMessage() for record in caplog.records] == ["GET /disk failed", "GET /settings failed"]
    with pytest.raises(KeyError):
        client.get("/other")


def test_a_user_s_requests_reach_the_user_s_sessions_only(sessions: Sessions) -> None:
    app = FastAPI()
    add_error_handler(app)

    @app.get("/{user}/{chat}")
    def check(user: str, chat: str) -> str:
        return sessions.for_user(user).check(chat).id

    sessions.open("t", user_id="alice", group_id="team", visibility="group")
    sessions.revoke("mallory")
    client = TestClient(app)
    for path, status in (("alice/t", 200), ("bob/t", 404), ("alice/u", 404), ("mallory/t", 403)):
        assert client.get(f"/{path}").status_code == status


def test_the_page_has_the_status_of_every_error() -> None:
    rows = re.findall(r"^\| (`\w+`.*?) \| (\d{3}) \|", PAGE.read_text(), re.MULTILINE)
    stated = {name: int(status) for names, status in rows for name in re.findall(r"`(\w+)`", names)}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.SessionError) and name != "SessionError":
            assert status_of(kind.__new__(kind)) == stated.get(name, 500), name
