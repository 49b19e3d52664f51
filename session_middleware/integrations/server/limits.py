"""How much one user may ask of a process: sizes of bodies, requests per minute, and streams that are open at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException

from session_middleware.errors import InvalidArgument

_MIB = 1024 * 1024
_MOST_IDLE = 4096  # users whose buckets are kept although they are full


@dataclass(frozen=True)
class Limits:
    """The limits of a server; ``None`` is none.

    Those of a user hold in each process: with four processes behind a balancer, a user may have up to four times as
    much. The number of runs in a session is a setting, ``on_busy``, and holds across processes.

    Args:
        body_bytes: of a request; a larger one is answered by 413. By default 32 MiB.
        requests_per_minute: of a user, who may also make them all at once; more are answered by 429.
        streams_per_user: that are open at once; more are answered by 429.

    Raises:
        InvalidArgument: a limit is no positive number.
    """

    body_bytes: int | None = 32 * _MIB
    requests_per_minute: int | None = None
    streams_per_user: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidArgument(name, value, wanted="a number from 1, or None for no limit")


class RequestRates:
    """A bucket for each user: it holds the requests of a minute, each request takes one, and time refills it."""

    def __init__(self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what a user's held, and when
        self._checked_size = _MOST_IDLE

    def take(self, user_id: str) -> None:
        """Take one from the user's bucket.

        Raises:
            HTTPException: 429 if it is empty, with the seconds until it is not.
        """
        if self._most is None:
            return
        now, per_second = self._clock(), self._most / 60
        held = self._held(user_id, now)
        if held < 1:
            wait = math.ceil((1 - held) / per_second)
            detail = f"more than {self._most} requests in a minute; try again later"
            raise HTTPException(429, detail, headers={"Retry-After": str(wait)})
        self._buckets[user_id] = (held - 1, now)
        if len(self._buckets) > self._checked_size:
            self._buckets = {user: kept for user, kept in self._buckets.items() if self._held(user, now) < self._most}
            self._checked_size = max(_MOST_IDLE, 2 * len(self._buckets))

    def _held(self, user_id: str, now: float) -> float:
        assert self._most is not None
        held, at = self._buckets.get(user_id, (float(self._most), now))
        return min(float(self._most), held + (now - at) * self._most / 60)
