"""Values as a pandas DataFrame. pandas is an extra, imported by the first call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from session_middleware.errors import MissingExtra


def data_frame(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Any:
    """A DataFrame with these columns, also without rows. Raises `MissingExtra` if pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise MissingExtra("to_pandas()", "pandas") from error
    return pandas.DataFrame([*rows], columns=[*columns])
