"""A TCP proxy on loopback that fails on command: cuts, swallows, delays, drops replies.

    async with FaultProxy("127.0.0.1", port) as proxy: ... proxy.cut()

Faults concern present connections and those made while the fault lasts; `heal` ends it for new ones. A swallowed
connection stays swallowed, as if a firewall had dropped its state: no bytes arrive, and no error.
"""

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["FaultProxy"]

TRICKLE_BYTES = 1_024


class _Pair:
    """One client's connection and the proxy's connection to the server."""

    def __init__(self, client: asyncio.StreamWriter, is_swallowed: bool) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.is_swallowed = is_swallowed
        self.is_losing_reply = False
        self.task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class FaultProxy:
    """Forwards to host:port. `delay_s`: before each chunk. `connections`: made so far; `lost_bytes`: of replies.

    `bytes_per_s`: of the replies of each connection; 0 = unlimited.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.connections = 0
        self.lost_bytes = 0
        self._target = (host, port)
        self._is_swallowing = False
        self._is_losing_replies = False
        self._is_refusing = False
        self._mark: bytes | None = None
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """As a Redis URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def redirect(self, port: int) -> None:
        """Forward new connections to another port of the same host."""
        self._target = (self._target[0], port)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        pairs = list(self._pairs)
        for pair in pairs:
            pair.abort()
            if pair.task is not None:
                pair.task.cancel()
        await asyncio.gather(*(pair.task for pair in pairs if pair.task is not None), return_exceptions=True)
        await self._server.wait_closed()

    async def until_connected(self, times: int, *, within_s: float = 60.0) -> None:
        """Wait until so many connections have been made, since the start."""
        async with asyncio.timeout(within_s):
            while self.connections < times:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)

    def cut(self) -> None:
        """Reset all present connections."""
        for pair in list(self._pairs):
            pair.abort()

    def refuse(self) -> None:
        """Reset present and new connections, until `heal`."""
        self._is_refusing = True
        self.cut()

    def swallow(self) -> None:
        """Read all bytes of both sides and forward none; still accept connections. Half-open."""
        self._is_swallowing = True
        for pair in self._pairs:
            pair.is_swallowed = True

    def lose_replies(self) -> None:
        """Forward requests and drop the server's replies."""
        self._is_losing_replies = True

    def lose_next_reply(self, to: bytes = b"") -> None:
        """Forward the next request that contains these bytes, and cut its connection instead of forwarding the reply.

        The request must not be split over two chunks, which small ones are not.
        """
        self._mark = to

    def heal(self) -> None:
        """Forward again, on connections that are not swallowed."""
        self._is_swallowing = self._is_losing_replies = self._is_refusing = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._is_refusing:
            writer.transport.abort()
            return
        pair = _Pair(writer, self._is_swallowing)
        pair.task = asyncio.current_task()
        self._pairs.add(pair)
        try:
            server_reader, pair.server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(pair, reader, pair.server, is_reply=False))
                group.create_task(self._pump(pair, server_reader, writer, is_reply=True))
        except (OSError, ExceptionGroup):
            pass  # one side is closed; the other is closed below
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would log a handler that is cancelled
        finally:
            self._pairs.discard(pair)
            pair.abort()

    async def _trickle(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Forward no faster than a slow link."""
        for start in range(0, len(data), TRICKLE_BYTES):
            piece = data[start : start + TRICKLE_BYTES]
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(len(piece) / self.bytes_per_s)

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        while data := await reader.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if not is_reply and self._mark is not None and self._mark in data:
                self._mark, pair.is_losing_reply = None, True
            if is_reply and pair.is_losing_reply:
                self.lost_bytes += len(data)
                raise ConnectionResetError("the reply is lost")
            if pair.is_swallowed or (is_reply and self._is_losing_replies):
                self.lost_bytes += len(data) if is_reply else 0
                continue
            if is_reply and self.bytes_per_s:
                await self._trickle(writer, data)
            else:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError("the other side must be closed too")
