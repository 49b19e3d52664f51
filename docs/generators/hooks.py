"""What MkDocs calls while it builds the site: it adds the pages and the tables that come from the code.

A page of `docs` marks the place of a table by a comment, ``<!-- generated: settings -->``. Pages link to files of the
repository as they lie in it, so that the links work there too; here they lead to the pages made from these files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs.generators import dictionary, notebooks, tables

_LOADED = re.compile(r"<(?:script|img|iframe)[^>]* src=\"?https?:|<link[^>]* rel=\"?stylesheet[^>]* href=\"?https?:")
ROOT = Path(__file__).parents[2]
_MARK = re.compile(r"^<!-- generated: (\w+) ?([\w.]*) -->$", re.MULTILINE)
_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")  # in a table GitHub wants a pipe in it escaped, and MkDocs does not
_LINK = re.compile(r"\]\(((?:\.\./)*)([\w/.-]+?)(#[\w-]+)?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])|[`*]")
_DOCUMENTS = {  # of the repository, and their pages
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
GENERATED: dict[str, Callable[..., str]] = {
    "commands": tables.commands,
    "dictionary": dictionary.tables_text,
    "errors": tables.errors,
    "examples": tables.examples,
    "extras": tables.extras,
    "methods": tables.methods,
    "settings": tables.settings,
    "values": tables.values,
}


def generated_pages() -> dict[str, str]:
    """The text of the pages that are made of other files, by their path in the site."""
    found = {page: (ROOT / name).read_text() for name, page in _DOCUMENTS.items()}
    found |= {f"notebooks/{path.stem}.md": notebooks.page(path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    found |= {f"examples/{path.stem}.md": tables.example(path) for path in sorted(ROOT.glob("examples/*.py"))}
    return {uri: with_site_links(text, uri) for uri, text in found.items()}


def with_site_links(text: str, uri: str) -> str:
    """The text with links to files of the repository led to their pages."""
    up = "../" * uri.count("/")

    def led(link: re.Match[str]) -> str:
        _, target, anchor = link.groups()
        page = _DOCUMENTS.get(target) or re.sub(r"^((?:notebooks|examples)/\w+)\.(?:ipynb|py)$", r"\1.md", target)
        page = page.removeprefix("docs/")
        is_of_site = page != target or target.startswith("docs/")
        return f"]({up}{page}{anchor or ''})" if is_of_site else link[0]

    return _LINK.sub(led, text)


def with_tables(text: str) -> str:
    """The text with the generated tables at their places."""
    return _MARK.sub(lambda mark: GENERATED[mark[1]](*filter(None, [mark[2]])), text)


def summary(text: str) -> dict[str, str]:
    """The title of a page and the first sentence of its text, which search engines and previews of links show."""
    heading, *blocks = re.split(r"\n{2,}", _FENCED.sub("", text).strip())
    first = next((block for block in blocks if re.match(r"[A-Za-z`\[*%]", block)), "")
    plain = _MARKUP.sub(lambda mark: mark[1] or "", " ".join(first.split()))
    sentence = re.split(r"(?<=\.) (?=[A-Z])", plain)[0].rstrip(":")
    return {"title": heading.removeprefix("# ")} | ({"description": sentence} if sentence else {})


def on_files(files: Files, *, config: Any) -> Files:
    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    page.meta.update(summary(markdown))
    text = with_tables(with_site_links(markdown, page.file.src_uri))
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), text)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Refuse a page that loads something from another host: the site works without a network."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    return output
