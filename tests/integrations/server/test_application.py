"""The app itself: what a caller who is not authenticated sees."""

from __future__ import annotations

from fastapi.testclient import TestClient

from session_middleware import Sessions
from session_middleware.integrations.server import app


def test_the_app_says_that_it_is_up(sessions: Sessions) -> None:
    assert TestClient(app(sessions)).get("/ok").json() == {"ok": True}
