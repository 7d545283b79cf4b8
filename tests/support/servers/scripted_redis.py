"""A Redis with scripted answers, sent when the test says: for orders and answers that a real one rarely gives.

    async with ScriptedRedis() as redis: ...; command = await redis.commands.get(); redis.reply(b"...")

Login commands are answered automatically. Everything else is answered by `answer`, if set, or waits for the test.
`send` writes raw bytes to the connection that sent the last command.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import hiredis

__all__ = ["Command", "ScriptedRedis", "confirmation", "message"]

Command = tuple[bytes, ...]


def confirmation(kind: bytes, name: bytes) -> bytes:
    """Redis' answer to SUBSCRIBE and UNSUBSCRIBE."""
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(name), name)


def message(name: bytes, payload: bytes) -> bytes:
    """A message as a subscriber gets it."""
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)


class ScriptedRedis:
    """answer: bytes for a command, or None to leave it to the test. Commands go to `commands`, one by one."""

    def __init__(self, answer: Callable[[Command], bytes | None] | None = None) -> None:
        self.commands: asyncio.Queue[Command] = asyncio.Queue()
        self.connections = 0
        self.port = 0
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._last: asyncio.StreamWriter | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()
        for writer in self._writers:
            try:
                await writer.wait_closed()
            except OSError:
                pass  # it was reset

    async def next(self, word: bytes, *, within_s: float = 20.0) -> Command:
        """Wait for the next command, which must be this one."""
        command = await asyncio.wait_for(self.commands.get(), within_s)
        assert command[0] == word, command
        return command

    def send(self, data: bytes) -> None:
        """Write to the connection that sent the last command."""
        assert self._last is not None
        self._last.write(data)

    def drop(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    self._take(tuple(words), writer)
        except OSError:
            pass  # reset by the other side
        finally:
            writer.close()

    def _take(self, command: Command, writer: asyncio.StreamWriter) -> None:
        if command[0] in (b"AUTH", b"CLIENT"):
            writer.write(b"+OK\r\n")
            return
        self._last = writer
        answer = self._answer(command) if self._answer is not None else None
        if answer is not None:
            writer.write(answer)
        self.commands.put_nowait(command)
