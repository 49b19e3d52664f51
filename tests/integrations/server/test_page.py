"""The page in a real browser, and what its routes answer to a user whose sessions they do not show."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from langgraph_sdk import get_sync_client

from session_middleware.integrations.server import page
from session_middleware.integrations.server.page import routes
from tests.support import node

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
STATIC = Path(page.__file__).parent / "static"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        advice = "Chromium is not installed: apt-get install chromium"
        pytest.fail(advice) if os.environ.get("CI") else pytest.skip(advice)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=found, args=FLAGS.split())
        yield made
        made.close()


class Visit:
    """A browser's window of a user, and what went wrong in it."""

    def __init__(self, browser: Browser, address: str, user: str, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1200, "height": 800})
        headers = {"x-user": user}
        self._context = browser.new_context(base_url=f"{address}/ui/", extra_http_headers=headers, **options)
        self._context.set_default_timeout(20_000)
        self.page: Page = self._context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("request", lambda request: self._check_host(request.url, address))

    def _check_host(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:")):
            self.faults.append(f"asked another host: {url}")

    def close(self) -> None:
        self._context.close()


def say(address: str, user: str, *texts: str, thread_id: str | None = None) -> str:
    """The id of a thread in which an agent has answered these."""
    with get_sync_client(url=address, headers={"x-user": user}) as client:
        chosen: str = thread_id or client.threads.create(graph_id="agent")["thread_id"]
        for text in texts:
            client.runs.wait(chosen, "agent", input={"messages": [{"role": "user", "content": text}]})
    return chosen


@pytest.mark.slow
def test_a_conversation_is_found_read_and_seen_as_a_trace(browser: Browser, served: str) -> None:
    say(served, "ann", "look up tea", "thank you")
    say(served, "ann", "good morning")
    say(served, "eve", "look up secrets")
    visit = Visit(browser, served, "ann")
    shown = visit.page
    shown.goto("./")
    assert shown.locator("h1").inner_text().split() == ["Sessions", "2"]
    shown.locator("#search").fill("tea")
    shown.keyboard.press("Enter")
    shown.get_by_role("link", name="look up tea").first.click()
    assert shown.locator("h1").inner_text() == "look up tea"
    call = shown.locator("details.call").first
    call.locator("summary").click()
    assert re.search(r'"thing": "tea"', call.inner_text())
    assert "you said thank you" in shown.locator("main").inner_text()
    shown.get_by_role("link", name="Trace").click()
    spans = shown.locator("details.span")
    names = [text.split()[:2] for text in spans.all_inner_texts()]
    assert ["tool", "look_up"] in names
    assert ["model", "scripted-1"] in names
    for view, words in {"Branches": "main", "Usage": "scripted-1", "Lifecycle": "UTC. It expires at"}.items():
        shown.get_by_role("navigation").last.get_by_role("link", name=view, exact=True).click()
        assert words in shown.locator("main").inner_text()
        assert shown.title() == f"{view} · look up tea · Sessions"
    assert visit.faults == []
    visit.close()


@pytest.mark.slow
def test_a_run_is_seen_while_the_page_is_open(browser: Browser, served: str) -> None:
    thread_id = say(served, "fay", "hello")
    visit = Visit(browser, served, "fay")
    visit.page.goto(f"session?id={thread_id}")
    visit.page.get_by_text("Live", exact=True).wait_for()
    visit.page.evaluate("window.isTheSamePage = true")
    say(served, "fay", "look up rivers", thread_id=thread_id)
    visit.page.get_by_text("it said").wait_for()
    assert visit.page.evaluate("window.isTheSamePage")
    assert visit.faults == []
    visit.close()


@pytest.mark.slow
def test_text_of_a_session_is_text_and_fits_a_phone(browser: Browser, served: str) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script> " + "W" * 3_000 + " مرحبا"
    thread_id = say(served, "gil", hostile)
    width = 360
    visit = Visit(browser, served, "gil", viewport={"width": width, "height": 740}, color_scheme="dark")
    for address in ("./", "./?q=alert", "usage", *(f"session?id={thread_id}&view={view}" for view in VIEWS)):
        visit.page.goto(address)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width, address
        assert visit.page.locator("main img, main script").count() == 0
        tabs = visit.page.locator(".tabs a").evaluate_all("tabs => tabs.map(tab => tab.getBoundingClientRect().right)")
        assert max(tabs, default=0) <= width, address
    visit.page.goto(f"session?id={thread_id}")
    assert hostile[:50] in visit.page.locator("main").inner_text()
    background = "getComputedStyle(document.body).backgroundColor"
    dark = visit.page.evaluate(background)
    visit.page.emulate_media(color_scheme="light")
    assert visit.page.evaluate(background) != dark
    assert visit.faults == []
    visit.close()


VIEWS = ("conversation", "trace", "branches", "usage", "lifecycle")


@pytest.mark.slow
def test_the_keyboard_suffices(browser: Browser, served: str) -> None:
    say(served, "hal", "good evening")
    visit = Visit(browser, served, "hal")
    visit.page.goto("./")
    visit.page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert visit.page.evaluate(f"{focused}.textContent").strip().startswith("Skip")
    assert visit.page.evaluate(f"{focused}.getBoundingClientRect().top") >= 0  # it is seen
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("evening")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**q=evening**")
    link = visit.page.get_by_role("link", name="good evening").first
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/session?**")
    assert visit.page.locator("h1").inner_text() == "good evening"
    assert visit.faults == []
    visit.close()


@pytest.mark.slow
def test_no_route_shows_the_session_of_another(served: str) -> None:
    thread_id = say(served, "ida", "my secret is tea")
    asked = {"id": thread_id, "seq": "1", "part": "text", "hash": "0" * 64, "q": "secret"}
    with httpx.Client(base_url=f"{served}/ui", params=asked, timeout=60) as client:
        for path in sorted({route.path for route in routes.router.routes}):  # type: ignore[attr-defined]
            unknown = client.get(path, headers={"x-user": "jon"}, params=asked | {"id": "unknown"})
            found = client.get(path, headers={"x-user": "jon"})
            assert (found.status_code, "secret is tea" in found.text) == (unknown.status_code, False), path
            assert found.status_code == (200 if path in ("/", "/usage") else 404), path
            assert client.get(path).status_code == 401, path
        for view in VIEWS:
            seen = client.get("/session", headers={"x-user": "jon"}, params=asked | {"view": view})
            assert seen.status_code == 404, view


def test_the_filter_of_users_is_for_operators(served: str) -> None:
    asked = {"user": "nobody", "q": "x"}
    assert httpx.get(f"{served}/ui/", params=asked, headers={"x-user": "ned"}, timeout=60).status_code == 200
    shown = httpx.get(f"{served}/ui/", params=asked, headers={"x-user": "ned", "x-operator": "1"}, timeout=60).text
    assert 'value="nobody"' in shown


@pytest.mark.slow
def test_two_servers_show_the_same_over_postgres(served_twice: tuple[str, str]) -> None:
    one, other = served_twice
    thread_id = say(one, "kim", "look up tea")
    seen = httpx.get(
        f"{other}/ui/session", params={"id": thread_id, "view": "trace"}, headers={"x-user": "kim"}, timeout=60
    )
    assert (seen.status_code, "look_up" in seen.text) == (200, True)
    assert (
        httpx.get(f"{other}/ui/session", params={"id": thread_id}, headers={"x-user": "lea"}, timeout=60).status_code
        == 404
    )


EARLY = base64.urlsafe_b64encode(b'["activity", "a", "0001-01-01T00:00:00+14:00"]').decode().rstrip("=")
WRONG = (
    *("session", "session?id=", "session?id=%00", "session?id=..%2F..", "session?id=a&view=none"),
    *(
        "session?id=a&before=0",
        "?after=nonsense",
        f"?after={EARLY}",
        "?order=none",
        "?status=none",
        "?label=%00",
        "usage?by=none",
    ),
    *("static/../routes.py", "nowhere"),
)


def test_a_wrong_address_is_answered_with_a_page(served: str) -> None:
    with httpx.Client(headers={"x-user": "max"}, timeout=60) as client:
        for asked in WRONG:
            found = client.get(f"{served}/ui/{asked}")
            assert found.status_code in (404, 422), asked
            assert "<h1" in found.text, asked
            assert "script-src 'self'" in found.headers["content-security-policy"], asked


def test_the_script_of_others_is_as_it_was_published() -> None:
    published = node.package("idiomorph") / "dist" / "idiomorph.min.js"
    assert (STATIC / "idiomorph.min.js").read_bytes() == published.read_bytes()
