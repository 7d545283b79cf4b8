"""Bodies: reads the bodies that clients post, with a timeout and a limit of bytes per address.

Rules:
- The caller looks up the session, if there is one, before reading: no body for an unknown session is read.
- Before the first byte is read, the whole body is reserved: its declared length, or the maximum. One
  address may have ADDRESS_MAX_BYTES reserved; a body beyond that gets 429.
- A body that is not complete after BODY_TIMEOUT_S gets 408, and its connection is closed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from aiohttp import web

from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.metrics import Metrics

__all__ = ["Bodies"]

BODY_TIMEOUT_S: Final = 10.0  # 1 MiB at 1 Mbit/s
BODY_MAX_BYTES: Final = 1 << 20  # aiohttp's limit of one body, unless the application sets another
ADDRESS_MAX_BYTES: Final = 16 << 20  # 16 bodies without a declared length


class Bodies:
    """Reads the bodies for one handler. site_of: returns the network of an address; None: a trusted proxy."""

    def __init__(self, metrics: Metrics, site_of: Callable[[str], str | None]) -> None:
        self._metrics = metrics
        self._site_of = site_of
        self._reserved: Counter[str] = Counter()  # bytes by network

    async def read(self, request: web.Request, ip: str) -> bytes:
        """Read a body. Raises HandshakeRefused: too many bytes of this address are being read; HTTPRequestTimeout."""
        site = self._site_of(ip)
        is_packed = "Content-Encoding" in request.headers  # aiohttp decompresses it: the declared length is unrelated
        length = None if is_packed else request.content_length
        size = BODY_MAX_BYTES if length is None else min(length, BODY_MAX_BYTES)  # a longer one gets 413
        if site is None:
            return await self._read(request)
        if self._reserved[site] + size > ADDRESS_MAX_BYTES:
            self._metrics.limit_hits.labels("body_bytes_per_ip").inc()
            raise HandshakeRefused(429, "body_bytes_per_ip", "Too many bytes under way from this address: send less")
        self._reserved[site] += size
        try:
            return await self._read(request)
        finally:
            self._reserved[site] -= size
            if self._reserved[site] <= 0:
                del self._reserved[site]

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await request.read()
        except TimeoutError:
            response = web.HTTPRequestTimeout()
            response.force_close()  # the rest of the body is not a request
            raise response from None
