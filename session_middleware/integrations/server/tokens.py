"""Bearer tokens: `JwtVerifier` finds the caller in a JSON Web Token, which an identity provider has signed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jwt
from fastapi import HTTPException
from starlette.requests import HTTPConnection

from session_middleware.errors import InvalidArgument
from session_middleware.integrations.callers import Caller

logger = logging.getLogger("session_middleware")

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SYMMETRIC = frozenset({"HS256", "HS384", "HS512"})

Keys = Mapping[str, Any] | str | bytes | Sequence[str | bytes]


class JwtVerifier:
    """Finds the caller in the token of the header ``Authorization: Bearer …``; pass it as ``authenticate=…``.

    A token counts if one of the keys has signed it with one of the algorithms, if issuer and audience are those
    given, and if it has an expiry that is not over. A stream that is open at the expiry ends then.

    Args:
        issuer: the ``iss`` of tokens, or several that are accepted.
        audience: the ``aud`` that a token must have, or several of which it must have one. ``None`` accepts only
            tokens without an ``aud``.
        jwks_url: where the provider publishes its keys. They are read when the first token comes, again after five
            minutes, and for an unknown key at most every 30 seconds; the loop does not wait for them.
        keys: instead of `jwks_url`: a JSON Web Key Set as a mapping, or public keys in PEM format.
        user_claim: the claim with the user's id, ``"a.b"`` for one within another.
        groups_claim: that with the ids of the user's groups, a list or one.
        is_operator: whether the claims are those of an operator, who has access to all sessions. Only ``True`` counts,
            so a claim that is the text "false" does not.
        algorithms: those that a signature may have; by default all asymmetric ones. A shared secret in `keys` needs
            ``("HS256",)``, which cannot be mixed with others.
        leeway_seconds: by which the provider's clock may differ.

    Raises:
        InvalidArgument: an argument is invalid, or the keys are none.
    """

    def __init__(
        self,
        *,
        issuer: str | Sequence[str],
        audience: str | Sequence[str] | None,
        jwks_url: str | None = None,
        keys: Keys | None = None,
        user_claim: str = "sub",
        groups_claim: str | None = None,
        is_operator: Callable[[Mapping[str, Any]], bool] | None = None,
        algorithms: Sequence[str] = ASYMMETRIC,
        leeway_seconds: float = 30,
    ) -> None:
        self._algorithms = _checked_algorithms(algorithms)
        self._issuers = _texts("issuer", issuer)
        self._audiences = None if audience is None else _texts("audience", audience)
        if (jwks_url is None) == (keys is None):
            raise InvalidArgument("jwks_url", jwks_url, wanted="the address of the keys, or keys=…, and not both")
        self._keys: _RemoteKeys | _LocalKeys = _LocalKeys(keys) if jwks_url is None else _RemoteKeys(jwks_url)
        self._user_claim, self._groups_claim, self._is_operator = user_claim, groups_claim, is_operator
        self._leeway_seconds = leeway_seconds

    async def __call__(self, connection: HTTPConnection) -> Caller | None:
        """The caller of a request, or ``None`` without a token. Raises as `caller_of`."""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        return await self.caller_of(token.strip()) if scheme.lower() == "bearer" else None

    async def caller_of(self, token: str) -> Caller:
        """The caller whom a token names, for a host that gets it from a cookie or elsewhere.

        Raises:
            HTTPException: 401 if the token is not valid, 503 if the keys of the provider cannot be read.
        """
        try:
            claims = await self._claims_of(token)
            return self._caller(claims)
        except jwt.ExpiredSignatureError as error:
            raise _refusal("the token has expired") from error
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            logger.info("a token was refused: %s", error)
            raise _refusal("the token is not valid") from error

    async def _claims_of(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in self._algorithms:  # before any key is looked for
            raise jwt.InvalidAlgorithmError("its algorithm is not allowed")
        failure = jwt.InvalidTokenError("its key is not known")
        for key in await self._keys.named(header.get("kid")):
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=self._algorithms,
                    issuer=self._issuers,
                    audience=self._audiences,
                    leeway=self._leeway_seconds,
                    options={"require": ["exp", "iss"], "verify_sub": False},
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError, TypeError) as error:
                failure = jwt.InvalidTokenError(str(error))  # one without a key's id may be of another key
        raise failure

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        user_id = _claim(claims, self._user_claim)
        if isinstance(user_id, int) and not isinstance(user_id, bool):
            user_id = str(user_id)
        if not isinstance(user_id, str) or not user_id:
            raise jwt.InvalidTokenError(f"its claim {self._user_claim!r} is no id of a user")
        groups = () if self._groups_claim is None else _claim(claims, self._groups_claim) or ()
        groups = (groups,) if isinstance(groups, str) else groups
        if not isinstance(groups, Iterable) or not all(isinstance(group, str) and group for group in groups):
            raise jwt.InvalidTokenError(f"its claim {self._groups_claim!r} is no list of groups")
        try:
            expires_at = datetime.fromtimestamp(int(claims["exp"]) + self._leeway_seconds, UTC)
        except OSError as error:  # the year is beyond what the C library knows
            raise jwt.InvalidTokenError("its expiry is no time") from error
        return Caller(user_id, tuple(groups), self._operates(claims), expires_at)

    def _operates(self, claims: Mapping[str, Any]) -> bool:
        try:
            return self._is_operator is not None and self._is_operator(claims) is True
        except (LookupError, TypeError, AttributeError):  # claims that lack what the function looks at
            return False


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by its path: ``"realm_access.roles"``."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _refusal(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    found = [given] if isinstance(given, str) else list(given)
    if not found or not all(isinstance(each, str) and each for each in found):
        raise InvalidArgument(name, given, wanted="a text that is not empty, or several")
    return found


def _checked_algorithms(given: Sequence[str]) -> tuple[str, ...]:
    asked = frozenset(given)
    if not asked or isinstance(given, str) or not (asked <= frozenset(ASYMMETRIC) or asked <= _SYMMETRIC):
        wanted = "algorithms such as ('RS256', 'ES256'), or only those of a shared secret, such as ('HS256',)"
        raise InvalidArgument("algorithms", given, wanted=wanted)
    return tuple(given)


class _LocalKeys:
    """Keys that the host has given."""

    def __init__(self, given: Any) -> None:
        self._named: jwt.PyJWKSet | None = None
        self._texts: list[str | bytes] = []
        try:
            if isinstance(given, Mapping):
                self._named = jwt.PyJWKSet.from_dict(dict(given) if "keys" in given else {"keys": [dict(given)]})
            else:
                self._texts = [given] if isinstance(given, str | bytes) else list(given)
        except jwt.PyJWTError as error:
            raise InvalidArgument("keys", "…", wanted="a JSON Web Key Set, or keys in PEM format") from error
        if self._named is None and not all(self._texts or [""]):
            raise InvalidArgument("keys", "…", wanted="at least one key")

    async def named(self, kid: str | None) -> Sequence[Any]:
        return self._texts if self._named is None else _of_name(self._named, kid)


def _of_name(keys: jwt.PyJWKSet, kid: str | None) -> list[jwt.PyJWK]:
    """The keys that may have signed a token; those without an id may have signed any."""
    signing = [key for key in keys.keys if key.public_key_use in ("sig", None)]
    return [key for key in signing if kid is None or key.key_id in (kid, None)]


_FRESH_SECONDS = 300  # after which keys are read again, in the background
_LONGEST_SECONDS = 86_400  # that keys are used while they cannot be read again
_COOLDOWN_SECONDS = 30  # between two reads because of a key that is not known
_RETRY_SECONDS = 5  # between two reads after one that failed
_TIMEOUT_SECONDS = 10


class _RemoteKeys:
    """The keys of an address. They are read on a thread, by one task at a time, however many requests wait."""

    def __init__(self, url: str) -> None:
        try:
            self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_TIMEOUT_SECONDS)
        except (jwt.PyJWTError, ValueError, AttributeError) as error:
            raise InvalidArgument("jwks_url", url, wanted="an address that begins with https://") from error
        self._keys: jwt.PyJWKSet | None = None
        self._read_at = -math.inf
        self._next_at = -math.inf  # the earliest next read
        self._reading: asyncio.Task[None] | None = None

    async def named(self, kid: str | None) -> Sequence[Any]:
        age = time.monotonic() - self._read_at
        if self._keys is None or age > _LONGEST_SECONDS:
            await self._read()
            if self._keys is None or time.monotonic() - self._read_at > _LONGEST_SECONDS:
                detail = "the keys of the identity provider cannot be read; try again later"
                raise HTTPException(503, detail, headers={"Retry-After": str(_RETRY_SECONDS)})
        elif not _of_name(self._keys, kid):
            await self._read()
        elif age > _FRESH_SECONDS:
            self._start()
        return _of_name(self._keys, kid)

    async def _read(self) -> None:
        """Read the keys, or wait for a read that has begun; not if the last one was a moment ago."""
        if (reading := self._start()) is not None:
            await asyncio.shield(reading)  # others wait for it too

    def _start(self) -> asyncio.Task[None] | None:
        loop, reading = asyncio.get_running_loop(), self._reading
        if reading is not None and not reading.done() and reading.get_loop() is loop:
            return reading
        if time.monotonic() < self._next_at:
            return None
        self._next_at = time.monotonic() + _COOLDOWN_SECONDS
        self._reading = loop.create_task(self._read_now())
        return self._reading

    async def _read_now(self) -> None:
        try:
            self._keys = jwt.PyJWKSet.from_dict(await asyncio.to_thread(self._client.fetch_data))
            self._read_at = time.monotonic()
            self._next_at = self._read_at + _COOLDOWN_SECONDS
        except (jwt.PyJWTError, OSError, ValueError, RecursionError) as error:
            self._next_at = time.monotonic() + _RETRY_SECONDS
            logger.warning("the keys of %s cannot be read (%s)", self._client.uri, error)
