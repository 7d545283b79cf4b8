"""KeyCache: the keys of a JWKS document (RFC 7517), fetched when they are needed and by one at a time.

Rules:
- However many ask, one request is under way at most; those who wait share what it brings.
- A key id that is not known makes the document be fetched again, for keys rotate; but at most once in
  REFETCH_S, for anybody can make ids up.
- The document is fetched again after MAX_AGE_S, for keys are withdrawn too. Tokens of known keys wait for that no
  longer than PATIENCE_S after the request began, and not at all after one that failed: an issuer that hangs delays
  no login. While the document cannot be had, what is known is good for STALE_MAX_S; after that nobody is let in.
- What is no RS256 or ES256 key for signatures is passed over: a secret (`oct`) in a public document is none.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jwt
import structlog

from gateway.auth import Key
from gateway.codec import decode_json
from gateway.errors import BrokerUnavailable, InvalidMessage, InvalidToken

__all__ = ["KeyCache", "KeysUnavailable", "read_keys"]

REFETCH_S: Final = 10.0
MAX_AGE_S: Final = 300.0
STALE_MAX_S: Final = 3600.0
RETRY_S: Final = 1.0  # after a failure
PATIENCE_S: Final = 0.25  # an issuer that is well answers within

_log = structlog.get_logger("snorky.auth")


class KeysUnavailable(Exception):
    """The document cannot be had, or is none. Raised by `fetch`; its text is for logs."""


class KeyCache:
    """Fulfils `gateway.auth.Keys`. fetch: gets the document. clock: monotonic seconds."""

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
        self._fetched_at_s: float | None = None  # the last that succeeded
        self._tried_at_s = 0.0
        self._has_failed = False  # the last try
        self._flight: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Key:
        """Find a key. Raises InvalidToken: there is none; BrokerUnavailable: not known now."""
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
        """Give up what is under way. Idempotent."""
        task, self._flight = self._flight, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _known(self, key_id: str | None, algorithm: str) -> Key | None:
        if key_id is not None:
            return self._keys.get(key_id)
        fitting = [key for key in self._keys.values() if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None  # a token need not name the only one

    async def _refresh(self, at_least_s: float) -> None:
        """Fetch, or wait for who does, unless that was tried less than at_least_s ago."""
        flight = self._start(at_least_s)
        if flight is not None:  # one of those who wait may give up; the others want it still
            await asyncio.shield(flight)

    async def _refresh_soon(self, at_least_s: float) -> None:
        """Fetch, and wait only as long as an issuer takes that is well."""
        flight = self._start(at_least_s)
        patience_s = PATIENCE_S - (self._clock() - self._tried_at_s)
        if flight is not None and not self._has_failed and patience_s > 0:
            await asyncio.wait((flight,), timeout=patience_s)

    def _start(self, at_least_s: float) -> "asyncio.Task[None] | None":
        """Give the request that is under way, or begin one; None if one was tried less than at_least_s ago."""
        if self._flight is None and not (at_least_s and self._clock() - self._tried_at_s < at_least_s):
            self._tried_at_s = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fly(), name="jwks")
        return self._flight

    async def _fly(self) -> None:
        try:
            keys = read_keys(await self._fetch())
        except KeysUnavailable as error:
            self._has_failed = True
            _log.warning("keys not fetched", error=str(error), known=len(self._keys))
        except Exception as error:  # the top of a task
            self._has_failed = True
            _log.warning("keys not fetched", error=repr(error), known=len(self._keys))
        else:
            if keys.keys() != self._keys.keys():
                _log.info("keys fetched", ids=[str(key_id) for key_id in keys])
            self._keys = keys
            self._has_failed = False
            self._fetched_at_s = self._tried_at_s  # when it was asked for, it was as new as that
        finally:
            self._flight = None


def read_keys(document: bytes) -> dict[str | None, Key]:
    """Read a JWKS document. Raises KeysUnavailable: it is none, or has no key that we could use."""
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
    if not isinstance(entry.get("kid"), str | None) or "d" in entry:  # a private key: nobody's secret any more
        return None
    try:
        public = jwt.PyJWK(entry, algorithm="RS256" if entry["kty"] == "RSA" else "ES256").key
        key = Key.public(public)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return key if entry.get("alg", key.algorithm) == key.algorithm else None
