"""KeyCache: the keys of a JWKS document (RFC 7517), fetched when needed, with one request at a time.

Rules:
- At most one request is in progress; all callers that wait share its result.
- An unknown key id triggers another fetch, because issuers rotate keys; but at most once per
  REFETCH_S, because anyone can invent key ids.
- The document is fetched again after MAX_AGE_S, because issuers withdraw keys too. Tokens of known keys wait for that
  at most PATIENCE_S after the request began, and not at all after a failed request: an issuer that hangs delays
  no login. While fetching fails, the known keys are used for STALE_MAX_S; after that logins by token fail (503).
- Entries that are not RS256 or ES256 signature keys are ignored: a secret (`oct`) in a public document is not secret.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jwt
import structlog

from snorky.gateway.auth.tokens import Key
from snorky.gateway.errors import BrokerUnavailable, InvalidMessage, InvalidToken
from snorky.gateway.protocol.codec import decode_json

__all__ = ["KeyCache", "KeysUnavailable", "read_keys"]

REFETCH_S: Final = 10.0
MAX_AGE_S: Final = 300.0
STALE_MAX_S: Final = 3600.0
RETRY_S: Final = 1.0  # after a failure
PATIENCE_S: Final = 0.25  # a healthy issuer responds within this time

_log = structlog.get_logger("snorky.auth")


class KeysUnavailable(Exception):
    """The document cannot be fetched or is invalid. Raised by `fetch`; its text is for logs."""


class KeyCache:
    """Implements `snorky.gateway.auth.tokens.Keys`. fetch: downloads the document. clock: monotonic seconds."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        clock: Callable[[], float] | None = None,
        refetch_s: float = REFETCH_S,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._fetch = fetch
        self._clock = clock or asyncio.get_running_loop().time
        self._refetch_s = refetch_s
        self._max_age_s = max_age_s
        self._keys: dict[str | None, Key] = {}
        self._fetched_at_s: float | None = None  # of the last success
        self._tried_at_s = 0.0
        self._has_failed = False  # the last attempt
        self._flight: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Key:
        """Return a key. Raises InvalidToken: unknown key; BrokerUnavailable: the keys cannot be fetched now."""
        age_s = self._age_s()
        if age_s >= self._max_age_s:
            again_s = RETRY_S if self._has_failed else 0.0
            if age_s >= STALE_MAX_S:
                await self._refresh(again_s)
                if self._age_s() >= STALE_MAX_S:
                    raise BrokerUnavailable("jwks")
            else:
                await self._refresh_soon(again_s)
        if (key := self._known(key_id, algorithm)) is None:
            await self._refresh(self._refetch_s)
            key = self._known(key_id, algorithm)
        if key is None:
            raise InvalidToken("key")
        return key

    def _age_s(self) -> float:
        return math.inf if self._fetched_at_s is None else self._clock() - self._fetched_at_s

    async def stop(self) -> None:
        """Cancel a request in progress. Idempotent."""
        task, self._flight = self._flight, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _known(self, key_id: str | None, algorithm: str) -> Key | None:
        if key_id is not None:
            return self._keys.get(key_id)
        fitting = [key for key in self._keys.values() if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None  # if there is only one, the token need not name it

    async def _refresh(self, at_least_s: float) -> None:
        """Fetch, or wait for the fetch in progress, unless one was tried less than at_least_s ago."""
        flight = self._start(at_least_s)
        if flight is not None:  # a caller may be cancelled; the others still need the result
            await asyncio.shield(flight)

    async def _refresh_soon(self, at_least_s: float) -> None:
        """Fetch, but wait only as long as a healthy issuer takes."""
        flight = self._start(at_least_s)
        patience_s = PATIENCE_S - (self._clock() - self._tried_at_s)
        if flight is not None and not self._has_failed and patience_s > 0:
            await asyncio.wait((flight,), timeout=patience_s)

    def _start(self, at_least_s: float) -> "asyncio.Task[None] | None":
        """Return the request in progress, or begin one; None if one was tried less than at_least_s ago."""
        if self._flight is None and not (at_least_s and self._clock() - self._tried_at_s < at_least_s):
            self._tried_at_s = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fly(), name="jwks")
        return self._flight

    async def _fly(self) -> None:
        try:
            keys = read_keys(await self._fetch())
        except KeysUnavailable as error:
            self._has_failed = True
            _log.warning("JWKS fetch failed", error=str(error), known=len(self._keys))
        except Exception as error:  # the top of a task
            self._has_failed = True
            _log.warning("JWKS fetch failed", error=repr(error), known=len(self._keys))
        else:
            if keys.keys() != self._keys.keys():
                _log.info("keys fetched", ids=[str(key_id) for key_id in keys])
            self._keys = keys
            self._has_failed = False
            self._fetched_at_s = self._tried_at_s  # the document is at least as new as the request
        finally:
            self._flight = None


def read_keys(document: bytes) -> dict[str | None, Key]:
    """Parse a JWKS document. Raises KeysUnavailable: invalid, or without a usable key."""
    try:
        value: Any = decode_json(document)
    except InvalidMessage:
        raise KeysUnavailable("the document is not JSON") from None
    entries = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise KeysUnavailable('the document has no list of "keys"')
    found: dict[str | None, Key] = {}
    for entry in entries:
        key = _read_key(entry)
        if key is not None:
            found[entry.get("kid")] = key
    if not found:
        raise KeysUnavailable("the document has no RS256 or ES256 key")
    return found


def _read_key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC"):
        return None
    if not isinstance(entry.get("kid"), str | None) or "d" in entry:  # a private key, which the document discloses
        return None
    try:
        public = jwt.PyJWK(entry, algorithm="RS256" if entry["kty"] == "RSA" else "ES256").key
        key = Key.public(public)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return key if entry.get("alg", key.algorithm) == key.algorithm else None
