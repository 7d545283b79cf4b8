"""Downloads a JWKS document by HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from snorky.gateway.auth.jwks import KeyCache, KeysUnavailable

__all__ = ["remote_keys"]

TIMEOUT_S: Final = 4.0  # less than the timeout of authentication
DOCUMENT_MAX_BYTES: Final = 262_144


@asynccontextmanager
async def remote_keys(url: str) -> AsyncIterator[KeyCache]:
    """Provide the keys of a JWKS document during the context. They are fetched when first needed."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    # no cookies and no redirects: only the server in the settings may respond
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def fetch() -> bytes:
            try:
                async with session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as response:
                    if response.status != 200:
                        raise KeysUnavailable(f"status {response.status}")
                    document = await response.content.read(DOCUMENT_MAX_BYTES + 1)
                    while len(document) <= DOCUMENT_MAX_BYTES and not response.content.at_eof():
                        document += await response.content.read(DOCUMENT_MAX_BYTES + 1 - len(document))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise KeysUnavailable(str(error) or type(error).__name__) from error
            if len(document) > DOCUMENT_MAX_BYTES:
                raise KeysUnavailable(f"the document has more than {DOCUMENT_MAX_BYTES} bytes")
            return document

        cache = KeyCache(fetch)
        try:
            yield cache
        finally:
            await cache.stop()
