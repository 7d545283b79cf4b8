"""AsyncSnorkyBackend: SnorkyBackend for asyncio.

The transport's blocking exchanges run in the backend's own threads. So there is one implementation of the difficult
parts, and neither name resolution nor a TLS handshake blocks the event loop. A backend may be used from any loop, and
also in a process that was forked after its use: the child creates its own threads and connections.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from snorky.client.aio.threads import Threads
from snorky.client.backend import Call, Reply, SnorkyBackend
from snorky.client.http.transport import JSON, JsonModule, Transport

__all__ = ["AsyncSnorkyBackend"]


class AsyncSnorkyBackend:
    """Calls commands through a transport, from coroutines.

    json, retry: as for SnorkyBackend. concurrency_max: calls that run at once; further ones wait for a thread, and
    their timeout starts when they get one. A call that is cancelled while it waits is never sent; one that is already
    running continues in its thread, and its result is discarded. Close it with `async with` or `aclose`.
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
        """Send an envelope unchanged and return the response. Raises TransportError."""
        return await self._threads.run(partial(self._backend.send, message))

    async def call(self, service: str, command: str, /, **params: Any) -> Any:
        """Call a command and return its result. Raises SnorkyError: it refused; TransportError: no valid reply."""
        return await self._threads.run(partial(self._backend.call, service, command, **params))

    async def call_many(self, calls: Iterable[Call]) -> list[Reply]:
        """Make up to 1,000 calls in one request; as SnorkyBackend.call_many."""
        return await self._threads.run(partial(self._backend.call_many, list(calls)))

    async def aclose(self) -> None:
        """Wait for running calls, then stop the threads and close the transport's connections."""
        await self._threads.aclose()
        close = getattr(self._backend.transport, "close", None)
        if close is not None:
            close()
