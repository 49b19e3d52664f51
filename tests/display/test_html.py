"""What a notebook shows of sessions and their record, and what `repr` says of them in a line."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.display.html import MAX_ROWS, Rows
from session_middleware.models import Event, Message, Run, SessionInfo, ToolCall, Usage
from session_middleware.storage.timeline import Timeline, kind_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVIL = "<script>alert('x')</script> & \x1b[31m"

RUN = Run(session_id="t1", seq=1, id="r1", outcome="ok", started_at=NOON, duration_ms=12.5)
ASKED = Message(session_id="t1", seq=2, run_id="r1", message_id="m1", role="user", text="hello", created_at=NOON)
CALL = ToolCall(
    session_id="t1", seq=3, run_id="r1", tool_call_id="c1", name="search", arguments={"q": "tea"}, status="ok",
    result="found", checkpoint_ns="tools:1", started_at=NOON + timedelta(milliseconds=5), duration_ms=2.5,
)  # fmt: skip
CLOSED = Event(session_id="t1", seq=4, kind="completed", reason="by_user", created_at=NOON)


def session(**changes: Any) -> SessionInfo:
    given = {"id": "t1", "family_id": "t1", "created_at": NOON, "last_active_at": NOON + timedelta(hours=1)} | changes
    return SessionInfo(**given)


def rows_of(html: str) -> list[list[str]]:
    """The texts of the cells; fails on tags that are not closed in their order."""
    parser = _Reader()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser.rows


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        table, line = ("table", "thead", "tbody", "tr", "th", "td", "p"), ("details", "summary", "pre", "div")
        assert tag in (*table, *line), tag
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th", "summary", "pre"):
            self.rows[-1][-1] += f"\n{data}" if self.open[-1] == "pre" else data


def test_a_session_is_one_line_and_in_a_notebook_a_table() -> None:
    with Sessions(":memory:") as sessions:
        one = sessions.open("t1", user_id="ada", title="Tea")
        assert repr(one) == str(one) == "<Session 't1': active, of 'ada', 'Tea', 0 messages, 0 tool calls>"
        assert repr(sessions.open("t2")) == "<Session 't2': active, no owner, 0 messages, 0 tool calls>"
        facts = dict(row for row in rows_of(one._repr_html_()) if row)
        stats, why = (
            dict(row for row in rows_of(each._repr_html_()) if row) for each in (one.stats(), sessions.explain("t1"))
        )
        assert (stats["run count"], stats["cost"]) == ("0", "\N{EN DASH}")
        assert why["text"].startswith("session 't1': it is active")
    assert (facts["session"], facts["owner"], facts["title"], facts["status"]) == (
        "t1",
        "ada",
        "Tea",
        "active (opened)",
    )
    assert facts["holds"].startswith("0 runs, 0 messages, 0 tool calls, 0 errors")
    assert {"last active", "expires"} <= set(facts)


def test_sessions_say_which_database_and_whose_door_it_is() -> None:
    with Sessions(":memory:") as sessions:
        assert repr(sessions) == "Sessions(':memory:')"
        assert repr(sessions.for_user("ada")) == "Sessions(':memory:').for_user('ada')"


def test_lists_are_lists_and_in_a_notebook_tables() -> None:
    with Sessions(":memory:") as sessions:
        one = sessions.open("t1", user_id="ada")
        one.add({"role": "user", "content": "hello"})
        for found in (sessions.list(), sessions.for_user("ada").list(), one.messages(), one.events()):
            assert isinstance(found, list)
            head, *body = rows_of(found._repr_html_())  # type: ignore[attr-defined]
            assert len(body) == len(found) > 0
            assert len(head) == len(body[0])
        assert sessions.list(status="expired")._repr_html_() == "<p>nothing</p>"  # type: ignore[attr-defined]
        for empty in (one.tool_calls(), one.model_calls(), one.runs(), sessions.usage(), sessions.sweep()):
            assert empty == []
            assert isinstance(empty, Rows)


def test_a_timeline_is_one_line_and_in_a_notebook_its_tree() -> None:
    timeline = Timeline([RUN, ASKED, CALL, CLOSED])
    assert repr(timeline) == "<Timeline of 't1': 4 records, seq 1 to 4>"
    assert repr(Timeline()) == "<Timeline: no records>"
    assert repr(timeline.tree).splitlines() == [
        "run: ok, 12.5 ms",
        "  user: hello",
        "  tools",
        '    tool call: search(q="tea") → ok, 2.5 ms: found',
        "event: completed (by_user)",
    ]
    assert timeline.tree._repr_html_() == timeline._repr_html_()
    html = timeline._repr_html_()
    assert [row[2:] for row in rows_of(html)[1:]] == [
        ["run: ok, 12.5 ms", ""],
        ["user: hello", ""],
        ["tools", ""],
        ['tool call: search(q="tea") → ok, 2.5 ms: found\narguments: {\n  "q": "tea"\n}\nresult: found', ""],
        ["event: completed (by_user)", ""],
    ]
    assert re.findall(r"padding-left: ([\d.]+)em", html) == ["0.5", "2", "2", "3.5", "0.5"]
    assert re.findall(r"margin-left: ([\d.]+%); width: ([\d.]+%)", html) == [("0.0%", "100.0%"), ("40.0%", "20.0%")]
    assert re.findall('title="(.*?)"', html) == ["12.5 ms", "2.5 ms"]


def test_a_cost_that_is_not_known_is_a_dash_and_not_zero() -> None:
    unpriced = session(model_call_count=1, input_tokens=5)
    assert "5 + 0 tokens, cost \N{EN DASH}" in unpriced._repr_html_()
    assert rows_of(Rows([unpriced])._repr_html_())[1][-1] == "\N{EN DASH}"
    assert rows_of(Rows([Usage(key="ada", calls=1, errors=0)])._repr_html_())[1][5] == "\N{EN DASH}"


def test_lists_become_data_frames_with_a_column_for_each_field() -> None:
    pytest.importorskip("pandas")
    with Sessions(":memory:") as sessions:
        with sessions.open("t1", user_id="ada") as one:
            one.add({"role": "user", "content": "hello"})
            one.record_model_call(model="gpt-4o", input_tokens=7, output_tokens=1)
        frame = sessions.list().to_pandas()
        assert [*frame.columns] == [*SessionInfo.model_fields]
        assert frame.loc[0, ["id", "user_id", "message_count"]].tolist() == ["t1", "ada", 1]
        assert one.messages().to_pandas()["text"].tolist() == ["hello"]
        assert sessions.usage(by="model").to_pandas()["input_tokens"].sum() == 7
        assert [*one.tool_calls().to_pandas().columns] == [*ToolCall.model_fields]  # of no rows too
        timeline = one.timeline()
        assert timeline.to_pandas()["kind"].tolist() == [kind_of(record) for record in timeline]
        assert Rows().to_pandas().empty


def test_records_say_what_is_worth_saying_in_a_line() -> None:
    assert repr(ASKED) == "Message(seq=2, role='user', text='hello', created_at=2026-01-01 12:00:00)"
    assert repr(CLOSED).startswith("Event(session_id='t1', seq=4, kind='completed'")  # as a hook receives it
    long = ASKED.model_copy(update={"text": "word \n" * 1000})
    assert len(repr(long)) < 200
    assert "\n" not in repr(long)


def test_a_message_says_what_became_of_it() -> None:
    changed = {"status": "incomplete", "replaced_by": 9, "branch": "branch-2"}
    assert ASKED.model_copy(update=changed).line == "hello (incomplete) (edited later) (branch-2)"
    calls = ({"id": "c1", "name": "search", "args": {"q": 1}},)
    assert ASKED.model_copy(update={"text": "", "tool_calls": calls}).line == "asks for search(q=1)"


def test_usage_is_a_table_with_a_row_a_key() -> None:
    head, row = rows_of(Rows([Usage(key="ada", calls=3, errors=1, cost=0.25)])._repr_html_())
    assert dict(zip(head, row, strict=True))["cost"] == "$0.25"
    assert row[:3] == ["ada", "3", "1"]


def test_rows_of_several_sessions_say_whose_they_are() -> None:
    other = CALL.model_copy(update={"session_id": "t2"})
    assert rows_of(Rows([CALL, CALL])._repr_html_())[0][0] == "seq"
    assert [row[0] for row in rows_of(Rows([CALL, other])._repr_html_())] == ["session id", "t1", "t2"]


def test_nothing_recorded_is_read_as_html() -> None:
    evil = {"id": EVIL, "user_id": EVIL, "title": EVIL, "group_id": EVIL}
    record = [
        RUN.model_copy(update={"error": EVIL}),
        ASKED.model_copy(update={"text": EVIL}),
        CALL.model_copy(update={"name": EVIL, "arguments": {EVIL: EVIL}, "result": EVIL, "checkpoint_ns": EVIL}),
        CLOSED.model_copy(update={"reason": EVIL, "detail": {EVIL: EVIL}}),
    ]
    shown = [session(**evil)._repr_html_(), Rows([session(**evil)])._repr_html_(), Timeline(record)._repr_html_()]
    for html in (*shown, *(Rows([one])._repr_html_() for one in record)):
        assert "alert" in html
        assert "<script" not in html
        assert "\x1b" not in html
        rows_of(html)


def test_amounts_are_not_read_as_formulas() -> None:
    for shown in (ASKED, Rows([ASKED]), Timeline([RUN, ASKED])):
        assert shown._repr_html_().startswith('<table class="tex2jax_ignore mathjax_ignore">')


def test_a_long_list_is_cut_and_says_so() -> None:
    html = Rows([ASKED] * (MAX_ROWS + 1_234))._repr_html_()
    assert len(rows_of(html)) == MAX_ROWS + 1
    assert "and 1,234 more" in html
    assert re.search("and 1 more", Timeline([CLOSED] * (MAX_ROWS + 1))._repr_html_())


def test_what_a_notebook_shows_needs_nothing_heavy() -> None:
    code = "import sys, session_middleware.display.html\n"
    code += "print([m for m in ('rich', 'IPython', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_long_word_does_not_make_a_table_wider() -> None:
    html = Rows([ASKED.model_copy(update={"text": "x" * 500})])._repr_html_()
    [style] = re.findall(r'<td style="([^"]*)">x+', html)
    assert "overflow-wrap: anywhere" in style
    assert "nowrap" not in style
