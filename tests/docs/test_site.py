"""The pages of the site that come from the code are complete, and their SQL runs."""

from __future__ import annotations

import inspect
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from langgraph.graph import START, MessagesState, StateGraph

import session_middleware
from docs.generators import dictionary, hooks
from session_middleware import Session, Sessions, SessionSettings
from session_middleware.cli.main import cli
from session_middleware.user_sessions import UserSessions

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def source(name: str) -> str:
    """The Markdown of a page with its generated tables."""
    return hooks.with_tables((DOCS / name).read_text())


def reference() -> str:
    return "\n".join(source(f"reference/{path.name}") for path in sorted((DOCS / "reference").glob("*.md")))


def test_every_public_name_is_in_the_reference() -> None:
    text = reference()
    assert [name for name in session_middleware.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize(
    ("cls", "page"), [(Sessions, "sessions"), (UserSessions, "user_sessions"), (Session, "session")]
)
def test_every_public_method_is_on_its_page_with_its_first_sentence(cls: type, page: str) -> None:
    rows = re.findall(
        r"^\| \[`(\w+)`\]\[.*?\](?:<br>`(\w+)`)? \| (.*) \|$", source(f"reference/{page}.md"), re.MULTILINE
    )
    assert all(sentence for _, _, sentence in rows)
    public = {name for name in dir(cls) if not name.startswith("_")}
    fields = {name for name in public if not callable(getattr(cls, name)) and not _is_documented(cls, name)}
    missing = public - fields - {name for row in rows for name in row[:2]}
    assert missing - set(session_middleware.models.SessionInfo.model_fields) - {"columns"} == set()


def _is_documented(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name), property)


def test_every_setting_has_its_meaning() -> None:
    rows = re.findall(
        r"^\| .*?`(\w+)`<br>`SESSION_\w+` \| (.+?) \| (.+?) \|$", source("reference/settings.md"), re.MULTILINE
    )
    assert [name for name, _, _ in rows] == list(SessionSettings.model_fields)


def test_every_error_says_when_it_is_raised() -> None:
    rows = re.findall(
        r"^\| .*?`(\w+)`(?:<br>.*?)? \| (.+?) \| .*? \| (\d+) \|$", source("reference/errors.md"), re.MULTILINE
    )
    exceptions = {
        name
        for name in session_middleware.__all__
        if isinstance(cls := getattr(session_middleware, name), type) and issubclass(cls, Exception)
    }
    assert {name for name, _, _ in rows} == exceptions - {"SessionError"}


def test_every_command_is_on_its_page_with_its_options() -> None:
    text = source("reference/commands.md")
    for name, command in cli.commands.items():
        section = text.split(f"\n### {name}\n")[1].split("\n### ")[0]
        flags = {flag for each in command.params for flag in each.opts if flag.startswith("--")}
        assert {flag for flag in flags if flag not in section} == set(), name
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        assert re.search(
            rf"^session-middleware {name} \[OPTIONS\](?: \S+){{{len(arguments)}}}$", section, re.MULTILINE
        ), name
        assert re.findall(r"^\| `(?!-).*|^ +\S.*", section, re.MULTILINE) == [], name


def test_every_table_and_column_has_its_meaning() -> None:
    described = {name for tables in dictionary.PURPOSES.values() for name in tables}
    assert described == set(dictionary.schema())
    for table, columns in dictionary.schema().items():
        assert [name for name, column in columns.items() if not column.meaning] == [], table


def test_the_dictionary_is_that_of_a_real_file(tmp_path: Path) -> None:
    Sessions(tmp_path / "chat.db").close()
    with sqlite3.connect(tmp_path / "chat.db") as connection:
        for table, columns in dictionary.schema().items():
            found = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            assert found == list(columns)
            [(sql,)] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
            assert all(f"-- {column.meaning}" in sql for column in columns.values())
        own = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {name for name in own if not name.startswith(("_sqlite", "sqlite_"))} == set(dictionary.schema())
    connection.close()


def test_the_sql_of_the_dictionary_runs_and_finds_rows(tmp_path: Path) -> None:
    def answer(state: MessagesState) -> dict[str, object]:
        return {"messages": [("ai", "It is refunded.")]}

    with Sessions(tmp_path / "chat.db") as sessions:
        graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
        sessions.open("thread-42", user_id="alice", tags=["support"])
        agent = sessions.attach(graph)
        agent.invoke({"messages": "refund " + "it " * 1_000}, sessions.config("thread-42", user_id="alice"))
        session = sessions.get("thread-42")
        session.record_tool("refund_order", {"order": 1042}, error="TimeoutError: no answer")
        session.record_model_call("gpt-5-mini", input_tokens=10, output_tokens=5)
        with pytest.raises(session_middleware.SessionAccessDenied):
            agent.invoke({"messages": "hi"}, sessions.config("thread-42", user_id="mallory"))
    connection = sqlite3.connect(f"file:{tmp_path / 'chat.db'}?mode=ro", uri=True)
    examples = re.findall(r"^```sql\n(.*?)^```$", (DOCS / "data_dictionary.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    for sql in examples:
        assert connection.execute(sql).fetchall(), sql
    connection.close()


def test_json_on_a_page_is_json_and_names_tables_that_exist() -> None:
    found = {
        path.name: [
            json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        ]
        for path in DOCS.glob("*.md")
    }
    [metadata] = found["data_dictionary.md"]
    for table, options in metadata["databases"]["copy"]["tables"].items():
        columns = {
            options.get("sort"),
            options.get("sort_desc"),
            options.get("label_column"),
            *options.get("facets", ()),
        }
        assert columns - {None} <= set(dictionary.schema()[table])


class _Anything(yaml.SafeLoader):
    """Reads `mkdocs.yml`, in which some values name functions of Python."""


_Anything.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_the_navigation_has_each_page_once() -> None:
    def pages(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        return [page for each in (value.values() if isinstance(value, dict) else value) for page in pages(each)]

    given = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), _Anything)["nav"])
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | set(hooks.generated_pages())
    assert len(given) == len(set(given))
    assert set(given) == there


def test_links_of_documents_lead_to_pages_of_the_site() -> None:
    text = "[a](docs/scale.md#roles) [b](CHANGELOG.md) [c](examples/tour.py) [d](https://example.org/x.md)"
    led = "[a](scale.md#roles) [b](changelog.md) [c](examples/tour.md) [d](https://example.org/x.md)"
    assert hooks.with_site_links(text, "architecture.md") == led
    assert hooks.with_site_links("[n](../notebooks/03_memory.ipynb)", "notebooks.md") == "[n](notebooks/03_memory.md)"


def test_each_page_has_a_title_of_its_own_and_a_description() -> None:
    pages = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")} | hooks.generated_pages()
    found = {uri: hooks.summary(text) for uri, text in pages.items()}
    assert len({each["title"] for each in found.values()}) == len(found)
    programs = {f"examples/{path.stem}.md" for path in ROOT.glob("examples/*.py")}
    assert {uri for uri, each in found.items() if "description" not in each} == programs
    text = (
        "# A graph\n\n```python\ngraph()\n```\n\n`attach` returns a [copy](copy.md) of\nyour graph. It is not changed."
    )
    assert hooks.summary(text) == {"title": "A graph", "description": "attach returns a copy of your graph."}
