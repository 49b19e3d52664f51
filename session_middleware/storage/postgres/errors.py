"""Errors of PostgreSQL as `StorageError`. No sentence contains a password."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout

from session_middleware.errors import StorageError

_NEWER = "upgrade the package to open it"


def storage_error(name: str, error: psycopg.Error) -> StorageError:
    text = " ".join(re.sub(r"password=\S+", "password=…", str(error)).split())
    for kind, problem, advice in (
        (PoolTimeout, "no connection was free", "raise the server's limit, or use fewer threads"),
        (errors.InsufficientPrivilege, f"this role may not do that ({text})", "grant it the rights on the schema"),
        (errors.ReadOnlySqlTransaction, "it is read-only", "name the primary server to write"),
        (errors.DiskFull, "the server's disk is full", "free some space and try again; what was acknowledged is safe"),
        (errors.QueryCanceled, f"the server canceled a statement ({text})", "raise its statement_timeout"),
        (errors.LockNotAvailable, f"a lock was not free ({text})", "try again"),
        (psycopg.OperationalError, f"the connection failed ({text})", "check the URL and that the server runs"),
    ):
        if isinstance(error, kind):
            return StorageError(name, problem, advice=advice)
    return StorageError(name, text, advice="see the exception that caused this one")
