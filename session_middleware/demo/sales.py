"""Questions about sales, understood well enough to ask a database: measure, grouping, filters.

Only words of the shop's own vocabulary get into the SQL, so nothing a user types does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from session_middleware.demo.workspace import PRODUCTS, REGIONS

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MEASURES = {
    "revenue": "ROUND(SUM(quantity * unit_price), 2)",
    "units": "SUM(quantity)",
    "orders": "COUNT(*)",
}
_TITLES = {"revenue": "revenue", "units": "units sold", "orders": "number of orders"}
_GROUPS = {"product": "product", "region": "region", "month": "strftime('%m', day)"}
_ABOUT_SALES = re.compile(
    r"\b(?:sales|sold|sells? (?:best|most|least)|best-?sell\w*|revenue|turnover|orders|regions?)\b", re.IGNORECASE
)
_HOW_MANY = re.compile(r"\bhow (?:many|much)\b", re.IGNORECASE)
_MOST = re.compile(r"\b(?:most|best|highest|top|largest|best-?sell\w*)\b", re.IGNORECASE)
_LEAST = re.compile(r"\b(?:least|worst|lowest|fewest|smallest)\b", re.IGNORECASE)


def is_asked(question: str, *, besides_files: bool) -> bool:
    """Whether sales are asked for; "how many" alone only if nothing points to the files instead."""
    if _ABOUT_SALES.search(question):
        return True
    return bool(_HOW_MANY.search(question)) and (besides_files or bool(products_in(question)))


@dataclass(frozen=True, slots=True)
class Question:
    measure: str
    group: str | None = None
    order: str | None = None  # "DESC" for the most, "ASC" for the least, None for all of them
    products: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    months: tuple[str, ...] = ()

    def sql(self) -> str:
        group = _GROUPS[self.group] if self.group else None
        columns = f"{group} AS {self.group}, " if group else ""
        parts = [f"SELECT {columns}{_MEASURES[self.measure]} AS {self.measure} FROM sales", *self._where()]
        if group:
            parts.append(f"GROUP BY {group} ORDER BY")
            parts.append(f"{self.measure} {self.order} LIMIT 1" if self.order else group)
        return " ".join(parts)

    def _where(self) -> list[str]:
        numbers = tuple(f"{_MONTHS.index(month) + 1:02d}" for month in self.months)
        wanted = (("product", self.products), ("region", self.regions), (_GROUPS["month"], numbers))
        conditions = [f"{column} IN ({', '.join(map(_quoted, values))})" for column, values in wanted if values]
        return [f"WHERE {' AND '.join(conditions)}"] if conditions else []

    def described(self) -> str:
        filters = ", ".join((*self.products, *self.regions, *self.months))
        return _TITLES[self.measure] + (f" ({filters})" if filters else "")


def _quoted(word: str) -> str:
    return f"'{word}'"


def understand(question: str) -> Question:
    products, regions = products_in(question), _mentioned(question, REGIONS)
    months = tuple(month for month in _mentioned(question, _MONTHS) if month != "May" or "in May" in question)
    group = next((name for name in _GROUPS if re.search(rf"\b{name}s?\b", question, re.IGNORECASE)), None)
    order = "DESC" if _MOST.search(question) else "ASC" if _LEAST.search(question) else None
    if order and group is None:
        group = "product"
    return Question(_measure(question), group, order, products, regions, months)


def _measure(question: str) -> str:
    if re.search(r"\borders\b", question, re.IGNORECASE):
        return "orders"
    if re.search(r"\b(?:how many|units|pieces|sold)\b", question, re.IGNORECASE):
        return "units"
    return "revenue"


def products_in(question: str) -> tuple[str, ...]:
    return _mentioned(question, PRODUCTS)


def _mentioned(question: str, words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word in words if re.search(rf"\b{word}s?\b", question, re.IGNORECASE))


def answer(question: str, result: str) -> str:
    """The rows a query gave, in a sentence."""
    asked, rows = understand(question), json.loads(result)
    if not rows or all(row[asked.measure] is None for row in rows):
        return f"There were no sales: I looked for the {asked.described()}."
    if asked.group is None:
        return f"The {asked.described()}: {_amount(asked.measure, rows[0][asked.measure])}."
    shown = [f"{_label(row[asked.group])}, {_amount(asked.measure, row[asked.measure])}" for row in rows]
    which = {"DESC": "highest ", "ASC": "lowest ", None: ""}[asked.order]
    return f"The {which}{asked.described()} by {asked.group}: {'; '.join(shown)}."


def _label(value: str) -> str:
    return _MONTHS[int(value) - 1] if value.isdigit() else value


def _amount(measure: str, value: float) -> str:
    return f"{value:,.2f} euros" if measure == "revenue" else f"{value:,}"
