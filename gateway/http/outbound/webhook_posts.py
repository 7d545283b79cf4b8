"""Sends the requests of webhooks to the operator's backend."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from snorky.gateway._version import __version__

__all__ = ["webhook_posts"]

TIMEOUT_S: Final = 10.0  # from the connection to the answer
KEEPALIVE_S: Final = 2.0  # less than any backend's, which would close a connection while a request is sent


@asynccontextmanager
async def webhook_posts(
    *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Callable[[str, bytes, Mapping[str, str]], Coroutine[Any, Any, str | None]]]:
    """Provide a function that sends one request: URL, body, headers. It returns why it failed; None: 2xx."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),  # each app sends one at a time
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"snorky-gateway/{__version__}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,  # no proxy of the environment: events go only to the server in the settings
    ) as session:

        async def post(url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
            try:
                # no redirects: only the server in the settings may receive the events
                async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    # its status is the answer; a body that has not arrived by now costs the connection
                    return None if 200 <= response.status < 300 else f"status {response.status}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                return type(error).__name__

        yield post
