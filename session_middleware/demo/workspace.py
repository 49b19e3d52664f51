"""The little shop the demo agent works for: a few text files and a sales database, always the same.

Made afresh wherever it is wanted, so a conversation can be resumed in another process, or on another
day, and its tools find what they found before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

PRODUCTS = {"Headlamp": 39.0, "Camp Stove": 64.5, "Rain Jacket": 129.0, "Sleeping Mat": 85.0, "Water Filter": 42.9}
REGIONS = ("North", "South", "East", "West")
ORDERS = 480
_FIRST_DAY = date(2025, 1, 1)
_SEED = 2025

FILES = {
    "refund-policy.txt": """\
Refunds and returns

Customers may return an unused article within 30 days of delivery for a full refund.
A used article can be exchanged within 14 days if it has a fault.
Refunds are paid to the card that was charged, within 5 working days of the return's arrival.
Water filters cannot be returned once the seal is broken, for reasons of hygiene.
Return postage is free within the country; from abroad the customer pays it.
""",
    "opening-hours.txt": """\
Opening hours of the shop

Monday to Friday the shop is open from 9:00 to 18:30.
On Saturday the shop is open from 10:00 to 16:00.
On Sunday and on public holidays the shop is closed.
The telephone is answered on weekdays from 9:00 to 17:00.
""",
    "product-notes.txt": """\
Notes on the products

Headlamp: 400 lumen, charges by USB-C, runs 6 hours at full power.
Camp Stove: burns gas cartridges with a screw valve, boils a litre in 4 minutes.
Rain Jacket: waterproof to 20,000 mm; wash at 30 degrees without softener.
Sleeping Mat: R-value 4.2, weighs 480 grams, comes with a repair kit.
Water Filter: cleans 1,000 litres; must not freeze once it is wet.
""",
    "shipping.txt": """\
Shipping and delivery

Orders placed before 14:00 on a working day are shipped the same day.
Delivery takes 2 to 3 working days within the country and up to 8 abroad.
Shipping is free for orders above 60 euros and costs 4.90 euros below that.
Gas cartridges are shipped by road only and cannot be sent abroad.
""",
}


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the demo's files and its sales database are."""

    files: Path
    database: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Workspace:
        return cls(files=folder / "files", database=folder / "sales.db")


def make_workspace(folder: Path) -> Workspace:
    """Write the files and the database below `folder`; what is there already is written again."""
    workspace = Workspace.in_folder(folder)
    workspace.files.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (workspace.files / name).write_text(text, encoding="utf-8")
    workspace.database.unlink(missing_ok=True)
    database = Database(workspace.database)
    try:
        database.table("sales").insert_all(_sales(), pk="id")
    finally:
        database.close()
    return workspace


def _sales() -> Iterator[dict[str, Any]]:
    chance = random.Random(_SEED)  # noqa: S311 - the same figures in every run is the point
    for number in range(1, ORDERS + 1):
        product = chance.choices(list(PRODUCTS), weights=(5, 3, 4, 2, 3))[0]
        yield {
            "id": number,
            "day": (_FIRST_DAY + timedelta(days=chance.randrange(365))).isoformat(),
            "product": product,
            "region": chance.choices(REGIONS, weights=(4, 3, 2, 3))[0],
            "quantity": chance.randint(1, 6),
            "unit_price": PRODUCTS[product],
        }
