"""What the pictures of sessions show, and what they never do."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.color import Color
from rich.console import Console, RenderableType

from session_middleware.cli import styles
from session_middleware.cli.tables import sessions_table, sweep_table, timeline, usage_table
from session_middleware.models import Event, Message, Pin, Run, SessionInfo, SweepResult, ToolCall, Usage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


def session(**changes: Any) -> SessionInfo:
    given = {"id": "t1", "family_id": "t1", "created_at": NOON, "last_active_at": LATER} | changes
    return SessionInfo(**given)


def message(seq: int, role: str, text: str, **changes: Any) -> Message:
    given = {"session_id": "t1", "run_id": "r1", "message_id": f"m{seq}", "created_at": NOON} | changes
    return Message(seq=seq, role=role, text=text, **given)


def call(seq: int, status: str = "ok", **changes: Any) -> ToolCall:
    given = {"session_id": "t1", "run_id": "r1", "tool_call_id": "c1", "name": "search", "started_at": NOON} | changes
    return ToolCall(seq=seq, status=status, **given)


def run(seq: int, outcome: str = "ok", **changes: Any) -> Run:
    return Run(seq=seq, outcome=outcome, **({"session_id": "t1", "id": f"r{seq}", "started_at": NOON} | changes))


def event(seq: int, kind: str, **changes: Any) -> Event:
    return Event(seq=seq, kind=kind, **({"session_id": "t1", "created_at": NOON} | changes))


def printed(picture: RenderableType, *, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    console.print(picture, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def words(text: str) -> str:
    """Without the line breaks and the padding."""
    return " ".join(text.split())


def test_header_says_whose_session_it_is_and_what_it_holds() -> None:
    one = session(user_id="ada", message_count=4, tool_call_count=1, run_count=2, input_tokens=1200, output_tokens=80)
    text = words(printed(timeline(one, [])))
    assert "owner ada" in text
    assert "status active" in text
    assert "2 runs, 4 messages, 1 tool call, 0 errors, 1,200 + 80 tokens" in text


def test_rows_come_in_the_order_given_with_their_time() -> None:
    rows = [message(1, "user", "hello"), call(2), message(3, "assistant", "bye")]
    lines = printed(timeline(session(), rows)).splitlines()
    told = [line for line in lines if line.startswith("12:00:00")]
    assert [line.split()[1] for line in told] == ["user", "tool", "assistant"]


def test_tool_call_is_told_with_arguments_status_duration_and_result() -> None:
    rows = [call(1, arguments={"query": "ö", "k": 3}, result="found it", duration_ms=12.34)]
    assert 'search(query="ö", k=3) → ok, 12.3 ms: found it' in words(printed(timeline(session(), rows)))


def test_what_happened_in_a_subgraph_says_so_on_every_line() -> None:
    inside: dict[str, Any] = {"checkpoint_ns": "team:1|writer:2"}
    rows = [
        message(1, "assistant", "hello", model="gpt", **inside),
        message(2, "assistant", "", model="gpt", tool_calls=({"id": "c9", "name": "f", "args": {}},), **inside),
        message(3, "user", "do it", **inside),
        call(4, **inside),
        message(5, "assistant", "aside", model="gpt", flags=("aside",), checkpoint_ns="team:1|writer:2|model:3"),
    ]
    lines = [line for line in printed(timeline(session(), rows)).splitlines() if line.startswith("12:00:00")]
    assert ["team › writer: " in line for line in lines] == [True] * 5  # noqa: RUF001
    assert "model" not in lines[-1]


def test_failed_and_repeated_calls_say_so() -> None:
    rows = [call(1, "interrupted"), call(2, "error", attempt=2, error="ValueError: no", duration_ms=61_000)]
    text = words(printed(timeline(session(), rows)))
    assert "search() → interrupted" in text
    assert "search() → error, attempt 2, 1 min 1 s: ValueError: no" in text


def test_message_that_a_tool_call_tells_is_left_out_unless_full() -> None:
    asks = message(1, "assistant", "", tool_calls=({"id": "c1", "name": "search", "args": {"q": 1}},))
    rows = [asks, call(2, result="found"), message(3, "tool", "found", tool_call_id="c1")]
    assert words(printed(timeline(session(), rows))).count("found") == 1
    full = words(printed(timeline(session(), rows, full=True)))
    assert full.count("found") == 2
    assert "asks for search(q=1)" in full


def test_request_whose_call_was_never_executed_is_told() -> None:
    asks = message(1, "assistant", "", tool_calls=({"id": "c9", "name": "search", "args": {}},))
    assert "asks for search()" in printed(timeline(session(), [asks]))


def test_an_event_that_only_says_resumed_is_left_out_unless_full() -> None:
    rows = [event(1, "resumed", run_id="r2"), run(2), event(3, "revived", run_id="r2", reason="idle_timeout")]
    text = printed(timeline(session(), rows))
    assert "revived (idle_timeout)" in text
    assert text.count("event ") == 1
    assert printed(timeline(session(), rows, full=True)).count("event ") == 2


def test_the_detail_of_an_event_is_words_and_no_json() -> None:
    detail = {"user_id": "eve", "last_active_at": "2026-01-01T12:00:00.024Z", "calls": [{"tool": "f"}, {"tool": "g"}]}
    text = words(printed(timeline(session(), [event(1, "denied", reason="owner", detail=detail)]), width=200))
    assert "denied (owner) user eve, last active at 2026-01-01 12:00:00, calls tool f; tool g" in text


def test_a_pin_and_a_branch_are_told() -> None:
    one = session(pinned=Pin(by="bob", why="legal hold", at=NOON))
    text = words(printed(timeline(one, [message(1, "user", "hi"), message(2, "user", "ho", branch="branch-2")])))
    assert "pinned legal hold, by bob" in text
    assert "user hi 12:00:00 user ho (branch-2)" in text


def test_a_run_says_who_ran_it() -> None:
    text = printed(timeline(session(user_id="ada"), [run(2, user_id="bob[bold]", duration_ms=1)]))
    assert "ok, by bob[bold], 1 ms" in text


def test_long_text_is_cut_unless_full() -> None:
    rows = [message(1, "user", "word " * 400)]
    short = printed(timeline(session(), rows))
    assert "…" in short
    assert len(short.splitlines()) < 15
    assert printed(timeline(session(), rows, full=True)).count("word") == 400


def test_markup_in_recorded_text_is_shown_and_not_obeyed() -> None:
    evil = "[bold red]x[/] [link=http://e.vil]y[/link]"
    rows = [
        message(1, "user", evil),
        call(2, name=evil, result=evil),
        event(3, "denied", reason=evil),
        run(4, "error", error=evil),
    ]
    text = printed(timeline(session(id=evil, user_id=evil, title=evil), rows), width=400)
    assert text.count(evil) == 8


@pytest.mark.parametrize("evil", ["\x1b[31m", "\x1b]8;;http://e.vil\x07", "\x9b2J", "\x08", "\u202e", "\x7f", "\r"])
def test_control_characters_of_recorded_text_never_reach_the_terminal(evil: str) -> None:
    rows = [message(1, "user", f"a{evil}b"), call(2, name=f"n{evil}", arguments={"x": evil}, result=evil)]
    picture = timeline(session(id=f"i{evil}", user_id=f"u{evil}"), rows, full=True)
    tables = [sessions_table([session(id=f"i{evil}")]), sweep_table([ended(session_id=f"i{evil}")])]
    for each in (picture, *tables):
        assert evil[0] not in printed(each)


@pytest.mark.parametrize("evil", ["\n", "\t", "\r\n", "\u2028", "\x85", "\x0b"])
def test_an_id_with_line_breaks_stays_one_line_of_a_table(evil: str) -> None:
    name = f"x{evil}b"
    one = session(id=name, user_id=name)
    used = Usage(key=name, calls=1, errors=0, input_tokens=1, output_tokens=1, cost=0.5, unpriced=0)
    due = ended(session_id=name, user_id=name)
    for picture in (sessions_table([one]), sweep_table([due]), usage_table("session", [used]), timeline(one, [])):
        [line] = [line for line in printed(picture).splitlines() if line.startswith("x")]
        assert line[1 + len(evil)] == "b"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_but_that_of_an_id_is_wider_than_the_terminal(width: int) -> None:
    rows = [
        run(1),
        message(2, "user", "x" * 500),
        call(3, arguments={"text": "y" * 300}, result="z" * 300),
        event(4, "denied", detail={"user_id": "u" * 100}),
    ]
    for picture in (
        timeline(session(id="i" * 200, user_id="u" * 200), rows, full=True),
        sessions_table([session(id="i" * 200, user_id="u" * 200)]),
        sweep_table([ended(session_id="i" * 200)]),
    ):
        lines = printed(picture, width=width, force_terminal=True, color_system=None).splitlines()
        assert [line for line in lines if len(line) > width] == ["i" * 200]


def test_box_is_plain_where_the_encoding_has_no_lines() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    Console(file=file, width=80).print(timeline(session(), []))
    file.flush()
    lines = file.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert (lines[0], lines[1][:4]) == ("t1", "+---")


def test_sessions_are_a_line_each_with_whole_ids() -> None:
    text = printed(sessions_table([session(id="t1", user_id="ada"), session(id="t2", status="expired")]))
    assert "t1" in text
    assert "expired" in text
    assert "2026-01-01 13:00" in text


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("name", ["00000000-0000-0000-0000-000000000000", "k" * 300, "一" * 60, "two words"])
def test_ids_are_whole_at_any_width_and_in_a_pipe(name: str, width: int, is_terminal: bool) -> None:
    one = session(id=name, user_id="ada", title="Tea", message_count=1)
    due = ended(session_id=name)
    used = Usage(key=name, calls=1, errors=0, input_tokens=1, output_tokens=1, cost=0.5, unpriced=0)
    for picture in (sessions_table([one]), sweep_table([due]), usage_table("session", [used]), timeline(one, [])):
        text = printed(picture, width=width, force_terminal=is_terminal, color_system=None)
        assert sum(name in line for line in text.splitlines()) == 1
    listed = printed(sessions_table([one]), width=width, force_terminal=is_terminal, color_system=None)
    assert "ada" in listed
    assert "2026-01-01 13:00" in words(listed)


def test_a_narrow_terminal_names_the_numbers_under_the_id() -> None:
    one = session(id="k" * 60, user_id="ada", message_count=1, tool_call_count=2)
    lines = printed(sessions_table([one]), width=70, force_terminal=True, color_system=None).splitlines()
    assert lines == ["k" * 60, "  ada · active · 2026-01-01 13:00 · 1 message · 2 tools", "times are UTC"]


def test_a_narrow_terminal_names_each_of_several_times() -> None:
    text = printed(sweep_table([ended(session_id="k" * 60)]), width=70, force_terminal=True, color_system=None)
    assert re.search(r"last active \d{4}-.* expired \d{4}-", words(text))


def test_each_colour_is_readable_on_white_and_on_black() -> None:
    for name, colour in vars(styles).items():
        if name.isupper():
            found = Color.parse(colour).get_truecolor()
            parts = [part / 255 for part in found]
            linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
            luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
            contrasts = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05  # of WCAG; 3 is its least for large text
            assert min(contrasts) > 3.5, name


def test_empty_pictures_say_so() -> None:
    assert "no sessions" in printed(sessions_table([]))
    assert "nothing is due" in printed(sweep_table([]))


def ended(**changes: Any) -> SweepResult:
    given = {"session_id": "t1", "user_id": "ada", "action": "keep", "last_active_at": NOON, "expired_at": LATER}
    return SweepResult(**(given | changes))


def test_sweep_says_what_why_and_what_was_done() -> None:
    text = words(printed(sweep_table([ended(), ended(session_id="t2", action="delete")])))
    assert "t1 ada idle_timeout 2026-01-01 12:00 2026-01-01 13:00 keep" in text
    assert "t2 ada idle_timeout 2026-01-01 12:00 2026-01-01 13:00 delete" in text
