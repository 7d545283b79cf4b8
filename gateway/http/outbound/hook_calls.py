"""Sends the requests of HTTP hooks to the operator's backend."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from snorky.gateway._version import __version__
from snorky.gateway.config.hooks import Hooks
from snorky.gateway.hooks.answers import ANSWER_MAX_BYTES, CallFailed
from snorky.gateway.hooks.http_hooks import HttpHooks
from snorky.gateway.hooks.signature import SIGNATURE_HEADER, signature
from snorky.gateway.metrics import Metrics

__all__ = ["http_hooks"]

KEEPALIVE_S: Final = 15.0  # an idle connection to the backend
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small compressed answer could be a large one
    "Content-Type": "application/json",
    "User-Agent": f"snorky-gateway/{__version__}",
}


@asynccontextmanager
async def http_hooks(
    settings: Hooks, metrics: Metrics, *, node_id: str, wall_clock: Callable[[], float] = time.time
) -> AsyncIterator[HttpHooks | None]:
    """Provide the hooks of the settings during the context; None = no hook has a URL."""
    if not settings.written:
        yield None
        return
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)  # `Asker` bounds the requests
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `Asker` has the deadline
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # no proxy of the environment: claims and messages go only to the server in the settings
    ) as session:

        async def post(url: str, body: bytes) -> tuple[int, bytes]:
            headers = dict(_HEADERS)
            if settings.secret is not None:
                headers[SIGNATURE_HEADER] = signature(settings.secret, body, int(wall_clock()))
            try:
                try:
                    return await _post(session, url, body, headers)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError):
                        raise
                    # the backend had closed an idle connection; a question may be asked twice
                    return await _post(session, url, body, headers)
            except aiohttp.ClientConnectorError as error:
                raise CallFailed("connect", type(error).__name__) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise CallFailed("broken", type(error).__name__) from error

        hooks = HttpHooks(settings, post, metrics, node_id=node_id)
        try:
            yield hooks
        finally:
            await hooks.stop()


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    # no redirects: only the server in the settings may answer
    async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
        answer = await response.content.read(ANSWER_MAX_BYTES + 1)
        while len(answer) <= ANSWER_MAX_BYTES and not response.content.at_eof():
            answer += await response.content.read(ANSWER_MAX_BYTES + 1 - len(answer))
        if len(answer) > ANSWER_MAX_BYTES:
            response.close()
            raise CallFailed("too_large", f"more than {ANSWER_MAX_BYTES} bytes")
        return response.status, answer
