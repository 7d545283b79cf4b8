"""AsyncSnorkyBackend: the same calls for asyncio.

The transport's blocking exchanges run in threads of the backend's own: one implementation of what is hard about
them, and neither a slow name server nor a TLS handshake holds the event loop. A backend may be used
from any loop, and in a process that is forked after it was used: threads and connections are made there anew.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from snorky.aio.threads import Threads
from snorky.backend import Call, Reply, SnorkyBackend
from snorky.transport import JSON, JsonModule, Transport

__all__ = ["AsyncSnorkyBackend"]


class AsyncSnorkyBackend:
    """Calls commands through a transport, from coroutines.

    json, retry: as for SnorkyBackend. concurrency_max: calls under way at once; more wait for a thread, and their
    time runs from when they have one. A call that is cancelled while it waits is never sent; one that is
    under way goes on in its thread, and nobody hears what came of it. Close it with `async with` or `aclose`.
    """

    def __init__(
        self, transport: Transport, json: JsonModule = JSON, *, retry: bool = False, concurrency_max: int = 8
    ) -> None:
        self._backend = SnorkyBackend(transport, json, retry=retry)
        self._threads = Threads(concurrency_max, "snorky")

    async def __aenter__(self) -> "AsyncSnorkyBackend":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def send(self, message: Any) -> Any:
        """Send an envelope as it is and return the answer. Raises TransportError."""
        return await self._threads.run(partial(self._backend.send, message))

    async def call(self, service: str, command: str, **params: Any) -> Any:
        """Call a command and return what it returns. Raises SnorkyError: it refused; TransportError: see there."""
        return await self._threads.run(partial(self._backend.call, service, command, **params))

    async def call_many(self, calls: Iterable[Call]) -> list[Reply]:
        """Do up to 1,000 calls in one request; as SnorkyBackend.call_many."""
        return await self._threads.run(partial(self._backend.call_many, list(calls)))

    async def aclose(self) -> None:
        """Wait for the calls under way and let go of the threads and of the transport's connections."""
        await self._threads.aclose()
        close = getattr(self._backend.transport, "close", None)
        if close is not None:
            close()
